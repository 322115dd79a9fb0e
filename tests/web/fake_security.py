"""What a device in memory says of its keys, sessions and links: the same calls, nothing sealed."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field, replace

from mana.device.errors import WrongPassword
from mana.device.keyring import KeyringUnavailable
from mana.device.links import LinkNotShown, LinkView
from mana.device.security import RecoveryKit, SecurityStatus
from mana.device.sessions import DeviceInUse, DeviceView, PasskeySetup, TotpSetup
from mana.device.views import RotationView
from mana.domain.encoding import Json
from mana.domain.errors import NotFound
from mana.protocol.errors import LinkEnded, RecoveryWrapMissing, TwoFactorFailed
from mana.protocol.messages import FactorAnswer, FactorInfo, SecurityEvent, SessionInfo

AT = "2026-11-20T09:30:00.000Z"
CODES = (
    "0A1B-2C3D-4E5F-6071-8293-A4B5-C6D7-E8F9-0123-4567-89AB-CDEF-1122-3344-5566-7788",
    "F00D-2C3D-4E5F-6071-8293-A4B5-C6D7-E8F9-0123-4567-89AB-CDEF-1122-3344-5566-BEEF",
)
DIGITS = "123456 654321"
FINGERPRINT = "9f2c 41b7 d05a e863 1122 3344 5566 7788"
TOTP_CODE = "123456"
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
PASSKEY: dict[str, Json] = {
    "rp": {"id": "localhost", "name": "Mana"},
    "challenge": "AAECAwQFBgcICQoLDA0ODw",
    "user": {"id": "AAEC", "name": "ada", "displayName": "ada"},
    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
}


@dataclass
class FakeSecurity:
    """The keys of one account. `password`: the one in force, as far as a test set it."""

    login: str = "ada"
    password: str = ""
    mode: str = "standard"
    code: str | None = None
    waits: bool = False
    grants: bool = True
    is_remembered: bool = False
    rotating: list[RotationView] = field(default_factory=list)
    happened: list[SecurityEvent] = field(default_factory=list)
    sessions: FakeSessions = field(default_factory=lambda: FakeSessions())
    made: int = 0
    revision: int = 0
    minutes: int = 0

    async def status(self) -> SecurityStatus:
        return SecurityStatus(
            mode=self.mode,
            revision=self.revision,
            fingerprint=FINGERPRINT,
            recovery_set_at=AT if self.code else None,
            recovery_waiting=self.waits,
            grants=self.grants,
            factors=builtins.list(self.sessions.known.values()),
            rotations=self.rotating,
            keyring=self.is_remembered,
            auto_lock_minutes=self.minutes,
        )

    async def change_password(self, old: str, new: str) -> None:
        self._require(old)
        self.password = new
        self._happened("password")

    async def new_recovery_code(self) -> RecoveryKit:
        self.code, self.waits = CODES[self.made % 2], True
        self.made += 1
        self._happened("recovery")
        return self._kit()

    async def remove_recovery_code(self) -> None:
        if self.mode != "standard":
            raise RecoveryWrapMissing("zero-knowledge mode has a recovery code")
        self.code, self.waits = None, False
        self._happened("recovery")

    async def rotate_master(self, password: str) -> RecoveryKit:
        self._require(password)
        self._happened("master")
        return await self.new_recovery_code()

    async def set_mode(self, mode: str, password: str) -> RecoveryKit | None:
        self._require(password)
        if mode == self.mode:
            return None
        self.mode, self.grants = mode, mode == "standard"
        self._happened("mode")
        return None if mode == "standard" else await self.new_recovery_code()

    async def allow_grants(self, allowed: bool) -> None:
        self.grants = allowed
        self._happened("grants")

    async def rotate_identity(self) -> None:
        self._happened("identity")
        self.rotating.append(RotationView("", "identity", 2, 1, 4))

    async def rotate_space(self, space_id: str) -> None:
        self.rotating.append(RotationView(space_id, "key", 2, 77, 100, 3))

    async def rotations(self) -> builtins.list[RotationView]:
        return self.rotating

    async def events(
        self, before: str | None = None, limit: int = 50
    ) -> builtins.list[SecurityEvent]:
        found = [one for one in reversed(self.happened) if before is None or one.at < before]
        return found[:limit]

    async def refresh(self, password: str, *, factor: FactorAnswer | None = None) -> None:
        self._require(password)

    async def waiting_kit(self) -> RecoveryKit | None:
        return self._kit() if self.waits else None

    async def kit_seen(self) -> None:
        self.waits = False

    def _kit(self) -> RecoveryKit:
        return RecoveryKit(
            self.login, f"a-{self.login}", FINGERPRINT, self.code or "", AT, "http://127.0.0.1:3050"
        )

    def _require(self, password: str) -> None:
        if self.password and password != self.password:
            raise WrongPassword("the password does not open this account")

    def _happened(self, action: str, *, ok: bool = True) -> None:
        self.revision += 1
        at = f"2026-11-20T09:{30 + len(self.happened):02}:00.000Z"
        self.happened.append(SecurityEvent(at=at, action=action, ok=ok))


@dataclass
class FakeSessions:
    """Sessions, devices and second factors of one account."""

    known: dict[str, FactorInfo] = field(default_factory=dict)
    begun: dict[str, FactorInfo] = field(default_factory=dict)
    open: list[SessionInfo] = field(
        default_factory=lambda: [
            SessionInfo("a1111111-0000", AT, AT, True, "Laptop", "d1111111-0000"),
            SessionInfo("b2222222-0000", AT, AT, False, "Telephone", "d2222222-0000"),
        ]
    )
    all_devices: list[DeviceView] = field(
        default_factory=lambda: [
            DeviceView("d1111111-0000", "Laptop", AT, None, True, True),
            DeviceView("d2222222-0000", "Telephone", AT, None, False, True),
        ]
    )

    async def list(self) -> builtins.list[SessionInfo]:
        return self.open

    async def end(self, session_id: str) -> None:
        if all(one.session_id != session_id for one in self.open):
            raise NotFound("there is no such session")
        self.open = [one for one in self.open if one.session_id != session_id]

    async def devices(self) -> builtins.list[DeviceView]:
        return self.all_devices

    async def revoke(self, device_id: str) -> None:
        found = next((one for one in self.all_devices if one.id == device_id), None)
        if found is None:
            raise NotFound("the account has no such device")
        if found.current:
            raise DeviceInUse("this is the device at hand")
        self.all_devices = [
            replace(one, revoked_at=AT) if one is found else one for one in self.all_devices
        ]

    async def factors(self) -> builtins.list[FactorInfo]:
        return builtins.list(self.known.values())

    async def begin_totp(self, name: str) -> TotpSetup:
        factor_id = self._begin("totp", name)
        return TotpSetup(factor_id, SECRET, f"otpauth://totp/Mana?secret={SECRET}", "<svg></svg>")

    async def begin_passkey(self, name: str) -> PasskeySetup:
        return PasskeySetup(self._begin("passkey", name), PASSKEY)

    async def finish_factor(self, factor_id: str, answer: FactorAnswer) -> None:
        if answer.passkey is None and answer.totp != TOTP_CODE:
            raise TwoFactorFailed("the code is not right")
        self.known[factor_id] = self.begun.pop(factor_id)

    async def remove_factor(self, factor_id: str) -> None:
        if self.known.pop(factor_id, None) is None:
            raise NotFound("there is no such second factor")

    def _begin(self, kind: str, name: str) -> str:
        factor_id = f"f{len(self.known) + len(self.begun) + 1}000000-{kind}"
        self.begun[factor_id] = FactorInfo(factor_id, kind, name, AT)
        return factor_id


@dataclass
class FakeLinks:
    """New devices that ask; a link that was answered has revealed its key at the next look."""

    asking: dict[str, LinkView] = field(default_factory=dict)
    let_in: list[str] = field(default_factory=list)

    def ask(self, link_id: str = "1a2b3c4d" * 4, name: str = "New laptop") -> str:
        self.asking[link_id] = LinkView(link_id, name, "waiting", None, AT, AT)
        return link_id

    async def waiting(self) -> builtins.list[LinkView]:
        return builtins.list(self.asking.values())

    async def answer(self, link_id: str) -> None:
        self._require(link_id)
        self.asking[link_id] = replace(self.asking[link_id], state="revealed", digits=DIGITS)

    async def approve(self, link_id: str) -> None:
        if self._require(link_id).digits is None:
            raise LinkNotShown("the digits were not shown on this device")
        del self.asking[link_id]
        self.let_in.append(link_id)

    async def refuse(self, link_id: str) -> None:
        self._require(link_id)
        del self.asking[link_id]

    def _require(self, link_id: str) -> LinkView:
        if link_id not in self.asking:
            raise LinkEnded("no such link waits")
        return self.asking[link_id]


@dataclass
class FakeKeyring:
    """A keyring, if the system has one."""

    security: FakeSecurity
    is_there: bool = True

    async def is_on(self) -> bool:
        return self.security.is_remembered

    async def remember(self, on: bool) -> None:
        if on and not self.is_there:
            raise KeyringUnavailable("this system has no keyring that keeps a secret")
        self.security.is_remembered = on
