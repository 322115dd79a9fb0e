"""The runner's own keys: drawn by itself, kept apart from the hub's, and replaced in time.

Each pair is a file of its own. A younger pair carries the signature of the one before it, which
is written in the same moment, so that a pair either counts or is not there. What follows (the
public files for the hub, the end of the old half) is done again from the files after a crash.
How old a pair is is counted (`ages`), since a clock may be set.
Normative: docs/protocol/grants.md, 8.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from mana.crypto.primitives import b64
from mana.crypto.rsa import RsaPrivateKey
from mana.crypto.runners import (
    RunnerPrivateKey,
    RunnerPublicKey,
    Succession,
    name_successor,
    succession_from,
)
from mana.crypto.wrapping import wrap_private_from_pem
from mana.domain.errors import CryptoFailed, Invalid, Unavailable
from mana.domain.ids import DeviceId
from mana.domain.occurrences import SkipReason
from mana.hub.runner.ages import DAY_MS, Ages, MachineClocks, Reading
from mana.hub.runner.files import is_overwritten, locked, overwrite, remove, write_secret
from mana.hub.runner.settings import RunnerSettings
from mana.protocol.messages import RunnerSuccession

FOLDER: Final = "runner"
PRIVATE_FILE: Final = f"{FOLDER}/runner.key"
LOCK_FILE: Final = f"{FOLDER}/lock"
AGES_FILE: Final = f"{FOLDER}/ages.json"
PUBLIC_FILE: Final = "runner.pub"
CHAIN_FILE: Final = "runner.chain"
SERVICE_FILE: Final = "service.key"

REPLACED_MS: Final = 15 * DAY_MS
DESTROYED_MS: Final = 30 * DAY_MS
CHAIN_MAX: Final = 12
"""Former keys that the hub hands out: half a year of them."""
_SUFFIX: Final = ".key"


class RunnerKeysUnusable(Unavailable):
    """A file with a private key of the runner is there and cannot be read."""

    code = "RUNNER_KEYS_UNUSABLE"
    advice = (
        "Restore the folder `secrets/runner` from a backup. Without it, remove the folder: the "
        "runner draws new keys, and every person grants anew."
    )


class _Stored(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A pair in its file. `before`: whose successor it is, and that one's signature."""

    version: int
    made_ms: int
    key: str
    before: RunnerSuccession


@dataclass(frozen=True, slots=True)
class _Pair:
    """A pair that counts."""

    path: Path
    key: RunnerPrivateKey = field(repr=False)
    public: RunnerPublicKey
    made_ms: int
    before: Succession | None

    @property
    def key_id(self) -> str:
        return self.public.key_id()


def _go_on(_step: str) -> None:
    return None


class RunnerKeys:
    """The pairs of a runner: the current one, and the one before while it still opens.

    Several runners of one machine share the files. `reached` is told each step of a change, so
    that a test can end it there.
    """

    def __init__(
        self,
        settings: RunnerSettings,
        *,
        clocks: Callable[[], Reading] | None = None,
        reached: Callable[[str], None] = _go_on,
    ) -> None:
        self._secrets = settings.secrets_dir
        self._folder = self._secrets / FOLDER
        self._given = settings.private_key_pem
        self._ages = Ages(self._secrets / AGES_FILE, clocks or MachineClocks())
        self._reached = reached
        self._changing = threading.Lock()
        self._pairs: tuple[_Pair, ...] = ()
        self._former: frozenset[str] = frozenset()
        self._seen: frozenset[tuple[str, int]] | None = None
        self.turn()

    @property
    def current(self) -> RunnerPrivateKey:
        """Return the pair that new grants name."""
        return self._pairs[-1].key

    @property
    def key_id(self) -> str:
        """Return the key id that new grants name."""
        return self._pairs[-1].key_id

    def opening(self, key_id: str) -> RunnerPrivateKey | None:
        """Return the pair of this id, if it still opens."""
        return next((pair.key for pair in self._pairs if pair.key_id == key_id), None)

    def refusal(self, key_id: str) -> SkipReason | None:
        """Return why grants to this key do not open; None if they do."""
        if self.opening(key_id) is not None:
            return None
        return "key-rotated" if key_id in self._former else "not-configured"

    def turn(self) -> None:
        """Bring the keys to what their age asks for, and the public files in line with them.

        Draws a key, which takes a moment: not for an event loop. Raises RunnerKeysUnusable.
        """
        with self._changing:
            if self._pairs and self._seen == self._mark() and not self._is_due():
                return
            with locked(self._secrets / LOCK_FILE):
                if self._given:
                    self._pairs = (self._from_settings(),)
                else:
                    self._ages.read()
                    self._pairs = self._turned(self._aged(self._read()))
                self._publish(self._pairs)
                if not self._given:
                    self._pairs = self._without_old(self._pairs)
                    self._ages.write(pair.key_id for pair in self._pairs)
                self._seen = self._mark()

    def _is_due(self) -> bool:
        if self._given:
            return False
        if self._needs_successor(self._pairs[-1]) or any(map(self._is_over, self._pairs)):
            return True
        return self._ages.is_stale()

    def _needs_successor(self, pair: _Pair) -> bool:
        return self._ages.age_ms(pair.key_id) >= REPLACED_MS

    def _is_over(self, pair: _Pair) -> bool:
        return self._ages.age_ms(pair.key_id) >= DESTROYED_MS

    def _aged(self, pairs: tuple[_Pair, ...]) -> tuple[_Pair, ...]:
        """See to it that the age of each pair is known.

        One of unknown age is replaced soon at worst: whoever granted to it has time to hear of it.
        """
        for pair in pairs:
            self._ages.know(pair.key_id, made_ms=pair.made_ms, age_ms_max=REPLACED_MS)
        return pairs

    def _mark(self) -> frozenset[tuple[str, int]]:
        """Return what tells that another runner of this machine changed the pairs."""
        files = self._folder.glob(f"*{_SUFFIX}")
        return frozenset((path.name, path.stat().st_mtime_ns) for path in files)

    def _turned(self, pairs: tuple[_Pair, ...]) -> tuple[_Pair, ...]:
        """Return the pairs in order, with a first one, and with a successor where one is due."""
        if not pairs:
            first = self._secrets / PRIVATE_FILE
            write_secret(first, RunnerPrivateKey.generate().to_pem())
            return self._aged((self._read_pem(first),))
        newest = pairs[-1]
        if not self._needs_successor(newest):
            return pairs
        key = RunnerPrivateKey.generate()
        word = name_successor(newest.key, key.public())
        made = _Stored(1, self._ages.wall_ms(), key.to_pem(), succession_to_wire(word))
        path = self._folder / f"{key.public().key_id()[:16]}{_SUFFIX}"
        # Before the pair is there, so that it is never of an unknown age.
        self._ages.write([*(pair.key_id for pair in pairs), key.public().key_id()])
        write_secret(path, msgspec.json.encode(made).decode("ascii"))
        self._reached("drawn")
        return (*pairs, _Pair(path, key, key.public(), made.made_ms, word))

    def _publish(self, pairs: tuple[_Pair, ...]) -> None:
        """Leave the newest public key for the hub, and the keys that lead to it.

        The chain comes first: a device must not meet a key whose signature is not there yet.
        """
        newest = pairs[-1].public
        words = [pair.before for pair in pairs if pair.before is not None]
        words += read_chain(self._secrets / CHAIN_FILE)
        chain = _linked(newest, words)[:CHAIN_MAX]
        self._former = frozenset(word.key.key_id() for word in chain)
        self._leave(CHAIN_FILE, chain_to_text(chain))
        self._reached("chained")
        self._leave(PUBLIC_FILE, newest.to_pem())
        self._reached("published")

    def _leave(self, name: str, text: str) -> None:
        path = self._secrets / name
        with contextlib.suppress(FileNotFoundError):
            if path.read_text(encoding="ascii") == text:
                return
        write_secret(path, text)

    def _without_old(self, pairs: tuple[_Pair, ...]) -> tuple[_Pair, ...]:
        """Return the pairs that still open, after the others were destroyed."""
        kept: list[_Pair] = []
        for pair in pairs:
            if pair is pairs[-1] or not self._is_over(pair):
                kept.append(pair)
                continue
            overwrite(pair.path)
            self._reached("overwritten")
            remove(pair.path)
            self._reached("removed")
        return tuple(kept)

    def _read(self) -> tuple[_Pair, ...]:
        """Return the pairs that count, oldest first; end what a crash left half done."""
        found: dict[str, _Pair] = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}*")):
            is_draft = path.name.startswith(".")
            if is_draft or is_overwritten(path):
                overwrite(path)
                remove(path)
                continue
            if path.suffix != _SUFFIX:
                continue
            is_first = path == self._secrets / PRIVATE_FILE
            pair = self._read_pem(path) if is_first else self._read_pair(path)
            if pair is not None:
                found[pair.key_id] = pair
        return _in_order(found)

    def _read_pem(self, path: Path) -> _Pair:
        try:
            key = RunnerPrivateKey.from_pem(path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError, CryptoFailed):
            raise RunnerKeysUnusable("the runner's key cannot be read") from None
        return _Pair(path, key, key.public(), path.stat().st_mtime_ns // 1_000_000, None)

    def _read_pair(self, path: Path) -> _Pair | None:
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
            key = RunnerPrivateKey.from_pem(stored.key)
            before = Succession.read(stored.before.public_key, stored.before.signature)
        except (OSError, msgspec.MsgspecError, CryptoFailed):
            raise RunnerKeysUnusable("a key of the runner cannot be read") from None
        public = key.public()
        if len(succession_from(public, [before])) == 1:
            return None  # Nobody signed it: it does not count.
        return _Pair(path, key, public, stored.made_ms, before)

    def _from_settings(self) -> _Pair:
        """Return the pair of the settings, which is the operator's to change."""
        given, path = self._given, self._secrets / PRIVATE_FILE
        if "RUNNER PRIVATE KEY" in given:
            key = RunnerPrivateKey.from_pem(given)
        else:
            if not path.exists():
                write_secret(path, RunnerPrivateKey.generate().to_pem(), keep=True)
            rsa_key = wrap_private_from_pem(given)
            if not isinstance(rsa_key, RsaPrivateKey):
                raise Invalid("MANA_AI_PRIVATE_KEY_PEM is a runner's bundle or an RSA key")
            key = replace(self._read_pem(path).key, rsa_key=rsa_key)
        return _Pair(path, key, key.public(), self._ages.wall_ms(), None)


def _in_order(pairs: dict[str, _Pair]) -> tuple[_Pair, ...]:
    """Return the pairs, each before its successor. What stands alone is ordered by its time."""

    def depth(pair: _Pair) -> int:
        before = None if pair.before is None else pairs.get(pair.before.key.key_id())
        return 0 if before is None else 1 + depth(before)

    return tuple(sorted(pairs.values(), key=lambda pair: (depth(pair), pair.made_ms)))


def _linked(newest: RunnerPublicKey, words: Iterable[Succession]) -> list[Succession]:
    """Return the words that lead to a key, newest first, among all that are known."""
    known = list(words)
    chain: list[Succession] = []
    after = newest
    while True:
        found = next((one for one in known if len(succession_from(after, [one])) == 2), None)
        if found is None or found in chain:
            return chain
        chain.append(found)
        after = found.key


def succession_to_wire(word: Succession) -> RunnerSuccession:
    """Return the wire form."""
    return RunnerSuccession(
        key_id=word.key.key_id(), public_key=word.key.to_pem(), signature=b64(word.signature)
    )


def chain_to_text(chain: Iterable[Succession]) -> str:
    """Return the file that the hub reads."""
    return msgspec.json.encode([succession_to_wire(word) for word in chain]).decode("ascii")


def read_chain(path: Path) -> list[Succession]:
    """Return the words of a chain's file; none where there is no such file.

    It holds nothing secret, and what does not verify counts nothing, so that a broken one is
    only a chain that is too short.
    """
    try:
        wires = msgspec.json.decode(path.read_bytes(), type=list[RunnerSuccession])
        return [Succession.read(wire.public_key, wire.signature) for wire in wires]
    except (OSError, msgspec.MsgspecError, CryptoFailed):
        return []


def load_service_key(settings: RunnerSettings) -> str:
    """Return the key that `/internal/tick` asks for; it has no default, one is drawn once."""
    if settings.service_key:
        return settings.service_key
    path = settings.secrets_dir / SERVICE_FILE
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(32), keep=True)
    return path.read_text(encoding="ascii").strip()


def runner_device_id(key_id: str) -> DeviceId:
    """Return the device id in the stamps of a runner: the first half of its key id."""
    return DeviceId(str(uuid.UUID(hex=key_id[:32])))
