"""Which runs are to be obeyed: those of a runner that this person's devices granted to.

The hub lists grants, so it could list one that nobody made, for a runner of its own. A grant
therefore counts only if a certified device of its grantor signed it, and its runner's key with
it; grants from before signatures were listed, only if their runner's key is in the person's own
sealed settings, where the hub can neither read nor write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from mana.crypto.errors import SignatureRejected
from mana.crypto.grants import GrantHashes, verify_grant_ended, verify_grant_hashes
from mana.crypto.primitives import unb64
from mana.crypto.runners import RunnerPublicKey, Succession, succession_from
from mana.crypto.signatures import VerifyKey
from mana.device.editing import Editing
from mana.device.hub_news import HubNews
from mana.device.opened import Opened
from mana.domain.encoding import Json
from mana.domain.errors import Invalid, ManaError
from mana.domain.grants import GrantHeader, header_from_wire
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.records import View
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.domain.spaces import can_manage
from mana.protocol.messages import GrantInfo, RunnerInfo, Signature

HEADERS: Final = "grant-headers"
RUNNERS: Final = "runner-keys"
GRANTED: Final = "granted-runners"
HEADERS_MAX: Final = 200
VOUCHED: Final = "grants-vouched"
RUNNER_KEYS: Final = "runnerKeys"
RUNNERS_MAX: Final = 64
"""Two and a half years of a runner that takes a new key twice a month."""
_WORDS: Final = {
    "withheld": "A part of it is missing on the hub.",
    "record-withheld": "A part of it is missing on the hub.",
    "signer-unknown": "The device that signed it is not known here yet.",
    "signer-revoked": "The device that signed it was revoked before.",
    "signature-rejected": "Its signature does not hold.",
    "not-a-member": "Whoever signed it may not write in this space.",
    "no-grant": "The grant that it names is not known here.",
    "runner-unknown": "It was written by a runner that you did not grant to.",
    "foreign-agent": "It is signed for another mission or agent.",
    "foreign-grant": "Another member granted it, and no device of theirs vouches for the grant.",
}


@dataclass(slots=True)
class Memory:
    """What the account remembers of grants and runners, the same in each of its spaces.

    None until it was read.
    """

    headers: dict[str, GrantHeader] | None = None
    runners: dict[str, RunnerPublicKey] | None = None
    vouched: dict[str, GrantHeader] | None = None


def _headers(kept: Json) -> dict[str, GrantHeader]:
    """Return the headers of their kept form, by grant."""
    found: dict[str, GrantHeader] = {}
    for wire in kept if isinstance(kept, list) else []:
        try:
            header = header_from_wire(wire)
        except Invalid:
            continue
        found[header.grant_id] = header
    return found


class Trust:
    """Verifies iterations; a verified one stays so until it or one of its steps is touched."""

    def __init__(
        self, opened: Opened, editing: Editing, news: HubNews, memory: Memory | None = None
    ) -> None:
        self._opened = opened
        self._editing = editing
        self._news = news
        self._memory = memory or Memory()
        self._verified: dict[str, tuple[int | None, ...]] = {}

    async def remember(self, header: GrantHeader, runner: RunnerPublicKey) -> None:
        """Keep a grant that this device sealed, and that its runner is one of this person's."""
        headers, _ = await self._known()
        headers[header.grant_id] = header
        await self._vouch(header)
        await self.remember_runners([runner])

    async def remember_runners(self, keys: Sequence[RunnerPublicKey]) -> None:
        """Keep that these runners, oldest first, are this person's, on all their devices."""
        headers, runners = await self._known()
        runners.update({key.key_id(): key for key in keys})
        await self._keep(headers, runners)
        granted = await self.granted_to()
        wanted = [*dict.fromkeys([*granted, *(key.key_id() for key in keys)])]
        if wanted != granted:
            await self._opened.book.keep(GRANTED, [*wanted[-RUNNERS_MAX:]])
        await self.share_runners(wanted)

    async def share_runners(self, wanted: Sequence[str]) -> None:
        """Write key ids into the person's settings that are not there; nothing goes by it."""
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        found = view.values.get(RUNNER_KEYS) if view is not None else None
        shared = [str(one) for one in found] if isinstance(found, list) else []
        if not set(wanted) <= set(shared):
            merged = dict.fromkeys([*shared, *wanted])
            await self._editing.write_settings({RUNNER_KEYS: [*merged]})

    async def succession(
        self, runner: RunnerPublicKey, info: RunnerInfo
    ) -> tuple[RunnerPublicKey, ...] | None:
        """Return the keys that follow one of this person's up to `runner`, oldest first.

        Empty: it is one of this person's itself, or they never granted to any. None: nothing that
        they know leads to it.
        """
        known = await self.granted_to()
        if not known or runner.key_id() in known:
            return ()
        try:
            words = [Succession.read(one.public_key, one.signature) for one in info.succeeds]
        except ManaError:
            return None
        newer: list[RunnerPublicKey] = []
        for key in succession_from(runner, words):
            if key.key_id() in known:
                return tuple(reversed(newer))
            newer.append(key)
        return None

    async def verified(self, info: GrantInfo, header: GrantHeader) -> bool:
        """Say whether a device of its grantor made this grant; by the membership log alone.

        One without a signature counts only where this device made it, or verified it before.
        """
        if info.signature is None or not info.wrapped_key_hash or not info.sealed_keys_hash:
            return (await self._vouched()).get(header.grant_id) == header
        hashes = GrantHashes(info.wrapped_key_hash, info.sealed_keys_hash)
        try:
            device = self._signer(info.signature, header, header.account_id)
            signature = unb64(info.signature.value)
            verify_grant_hashes(header.canonical(), hashes, signature, device=device)
        except ManaError:
            return False
        return True

    def ended(self, info: GrantInfo, header: GrantHeader) -> bool:
        """Say whether somebody who may end this grant signed that it has ended."""
        if info.revocation is None:
            return False
        try:
            device = self._signer(info.revocation, header, None)
            word = unb64(info.revocation.value)
            verify_grant_ended(header.grant_id, header.canonical(), word, device=device)
        except ManaError:
            return False
        return True

    def _signer(self, said: Signature, header: GrantHeader, account: str | None) -> VerifyKey:
        """Return the key of a device of `account`; None: of the grantor, or of a manager."""
        book = self._opened.book
        authority = book.inner().syncer.authority(book.space)
        if account is not None:
            found, key = authority.writer(said.signer, newest=header.issued_at)
        else:
            found, key = authority.signer(said.signer)
        member = authority.members.get(found)
        may_end = member is not None and can_manage(member.role)
        if found != header.account_id and (account is not None or not may_end):
            raise SignatureRejected("signed by a device of somebody else")
        return key

    async def settings(self) -> dict[str, Json]:
        """Return what the person's devices remember together of runner and audit."""
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        kept = view.values.get("auditHead") if view is not None else None
        return dict(kept) if isinstance(kept, dict) else {}

    async def verify(self, iteration: View) -> tuple[bool, str]:
        """Say whether a run is to be obeyed, else why not, as a sentence."""
        # Read first: what is touched while it is verified is looked at again.
        named = iteration.values.get("stepIds")
        steps = [(STEPS.name, str(one)) for one in (named if isinstance(named, list) else [])]
        marks = await self._opened.book.marks([(ITERATIONS.name, iteration.id), *steps])
        if self._verified.get(iteration.id) == marks:
            return True, ""
        if iteration.text("source") == "device":
            verified, why = await self._opened.book.iteration_verified(
                iteration.id, headers={}, runners={}
            )
            reason = "" if verified else why or "signature-rejected"
        else:
            reason = await self._verify_hub(iteration)
        if reason:
            self._verified.pop(iteration.id, None)
            return False, _WORDS.get(reason, f"Not verified: {reason}.")
        self._verified[iteration.id] = marks
        return True, ""

    async def grantor(self, iteration: View) -> str:
        """Return the account that granted a run of the hub; empty for any other, or unknown."""
        proof = iteration.values.get("proof")
        if iteration.text("source") == "device" or not isinstance(proof, dict):
            return ""
        header, _ = await self._header(str(proof.get("grantId")))
        return "" if header is None else header.account_id

    async def is_for_others(self, iteration: View) -> bool:
        """Say whether another member granted this run, and this person manages nothing here."""
        grantor = await self.grantor(iteration)
        role = self._opened.book.keys.role
        return grantor not in ("", self._opened.account_id) and not (role and can_manage(role))

    async def _verify_hub(self, iteration: View) -> str:
        proof = iteration.values.get("proof")
        if not isinstance(proof, dict):
            return "signature-rejected"
        grant_id, key_id = str(proof.get("grantId")), str(proof.get("keyId"))
        header, is_vouched = await self._header(grant_id)
        if header is None:
            return "no-grant"
        if header.account_id != self._opened.account_id and not is_vouched:
            return "foreign-grant"
        if header.runner_key_id != key_id or header.space_id != self._opened.space:
            return "foreign-agent"
        if header.mission_id != iteration.text("missionId"):
            return "foreign-agent"
        # Who signed the grant named the runner in it; an unsigned one is the hub's word only.
        if not is_vouched and key_id not in await self.granted_to():
            return "runner-unknown"
        runner = await self._runner(key_id)
        if runner is None:
            return "runner-unknown"
        verified, reason = await self._opened.book.iteration_verified(
            iteration.id, headers={grant_id: header}, runners={key_id: runner}
        )
        return "" if verified else reason or "signature-rejected"

    async def _header(self, grant_id: str) -> tuple[GrantHeader | None, bool]:
        """Return a grant's header, and whether a device of its grantor vouches for it."""
        headers, runners = await self._known()
        vouched = await self._vouched()
        if grant_id not in vouched:
            added = False
            for info in await self._news.grants():
                try:
                    header = header_from_wire(info.header)
                except Invalid:
                    continue
                is_here = header.space_id == self._opened.space
                if is_here and await self.verified(info, header):
                    await self._vouch(header)
                added = added or header.grant_id not in headers
                headers.setdefault(header.grant_id, header)
            if added:
                await self._keep(headers, runners)
        found = vouched.get(grant_id)
        return (found, True) if found is not None else (headers.get(grant_id), False)

    async def _vouched(self) -> dict[str, GrantHeader]:
        """Return by id the grants of which a device's signature was verified here."""
        if self._memory.vouched is None:
            kept = await self._opened.book.kept(VOUCHED)
            self._memory.vouched = _headers(kept)
        return self._memory.vouched

    async def _vouch(self, header: GrantHeader) -> None:
        vouched = await self._vouched()
        if vouched.get(header.grant_id) != header:
            vouched[header.grant_id] = header
            newest = sorted(vouched.values(), key=lambda one: one.issued_at)[-HEADERS_MAX:]
            await self._opened.book.keep(VOUCHED, [one.to_wire() for one in newest])

    async def _runner(self, key_id: str) -> RunnerPublicKey | None:
        headers, runners = await self._known()
        if key_id not in runners:
            try:
                info = await self._opened.hub.runner()
                pems = [info.public_key, *(one.public_key for one in info.succeeds)]
                # Each is what its id says: the id is the hash of the key.
                found = [RunnerPublicKey.from_pem(pem) for pem in pems]
            except ManaError:
                return None
            runners.update({key.key_id(): key for key in found})
            await self._keep(headers, runners)
        return runners.get(key_id)

    async def granted_to(self) -> list[str]:
        """Return the key ids of the runners that this person's devices granted to.

        What was once known here stays so: another device that had not read the settings yet, or
        was kept from them by the hub, may have written them without.
        """
        view = await self._opened.book.view(SETTINGS.name, SETTINGS_ID)
        # Older devices kept them in the one field of the audit's head.
        named = (await self.settings()).get("runners")
        shared = [str(key_id) for key_id in named] if isinstance(named, list) else []
        found = view.values.get(RUNNER_KEYS) if view is not None else None
        shared += [str(key_id) for key_id in found] if isinstance(found, list) else []
        kept = await self._opened.book.kept(GRANTED)
        own = [str(key_id) for key_id in kept] if isinstance(kept, list) else []
        granted = [*own, *(key_id for key_id in shared if key_id not in own)][-RUNNERS_MAX:]
        if granted != own:
            await self._opened.book.keep(GRANTED, [*granted])
        return granted

    async def _known(self) -> tuple[dict[str, GrantHeader], dict[str, RunnerPublicKey]]:
        memory = self._memory
        if memory.headers is None or memory.runners is None:
            headers = _headers(await self._opened.book.kept(HEADERS))
            runners: dict[str, RunnerPublicKey] = {}
            pems = await self._opened.book.kept(RUNNERS)
            for pem in pems if isinstance(pems, list) else []:
                try:
                    key = RunnerPublicKey.from_pem(str(pem))
                except ManaError:
                    continue
                runners[key.key_id()] = key
            memory.headers, memory.runners = headers, runners
        return memory.headers, memory.runners

    async def _keep(
        self, headers: dict[str, GrantHeader], runners: dict[str, RunnerPublicKey]
    ) -> None:
        newest = sorted(headers.values(), key=lambda header: header.issued_at)[-HEADERS_MAX:]
        await self._opened.book.keep(HEADERS, [header.to_wire() for header in newest])
        await self._opened.book.keep(RUNNERS, [key.to_pem() for key in runners.values()])
