"""What people signed that lets more happen, as a runner obeys it: nothing looser, nothing older.

What holds for an account stands in plain columns, because the database counts by it; and what a
space lifts in a plain record. Both can be changed behind the runner, or come out of an older copy.
So the runner asks what a device signed, and remembers beside the database what it saw last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from mana.crypto.envelope import parse_json
from mana.crypto.errors import Malformed
from mana.crypto.policies import LIFTED, lifted_stamps
from mana.crypto.primitives import unb64
from mana.crypto.signatures import VerifyKey
from mana.crypto.work import Limits, WorkWord, hub_id, verify_work
from mana.domain.errors import ManaError
from mana.domain.ids import AccountId, SpaceId
from mana.domain.occurrences import SkipReason
from mana.hub.runner.memory import RunnerMemory
from mana.hub.runner.standing import Space, by_stamp
from mana.protocol.messages import StateRecord
from mana.protocol.replication import apply_state

_K = TypeVar("_K")
_V = TypeVar("_V")
SEEN_MAX: Final = 256
"""Of how many accounts and spaces what was verified last is kept."""


@dataclass(frozen=True, slots=True)
class ToldWork:
    """What the database says of an account's work, and what a device signed of it."""

    limits: Limits = field(default_factory=Limits)
    word: str | None = None
    signer: str = ""
    signature: str = ""


@dataclass(frozen=True, slots=True)
class JudgedWork:
    """Why nothing runs for an account, None if it may; revision and hash of the newest word."""

    refusal: SkipReason | None = None
    newest: tuple[int, str] | None = None


class Words:
    """Judges what the database says by what was signed. `hub_key`: the hub's public key (base64)."""

    def __init__(self, memory: RunnerMemory, hub_key: Callable[[], str]) -> None:
        self._memory = memory
        self._hub_key = hub_key
        self._words: dict[AccountId, tuple[ToldWork, Space, WorkWord]] = {}
        self._lifted: dict[SpaceId, tuple[str, Space, dict[str, str]]] = {}

    def judge_work(self, account: AccountId, told: ToldWork, space: Space) -> JudgedWork:
        """Return whether anything runs for an account: only where what holds is what it signed.

        An account that never signed anything has no caps but those that a session set. `space`: one
        that it is a member of, whose log says which devices are its. It is the database that says
        so, and so nothing is remembered here: a log can be made up for anybody's account.
        """
        known = self._memory.word(account)
        set_back = JudgedWork("set-back", known)
        if told.word is None:
            return JudgedWork() if known is None else set_back
        try:
            word = self._word(account, told, space)
        except ManaError:
            return JudgedWork("signature-rejected")
        if not word.limits.covers(told.limits):
            return JudgedWork("signature-rejected")
        newest = (word.revision, word.digest())
        if known is not None and newest != known and word.revision <= known[0]:
            return set_back
        return JudgedWork(None, newest)

    async def lift_refusal(
        self, space_id: SpaceId, record: str | None, space: Space
    ) -> SkipReason | None:
        """Return `set-back` where what a space lifts is older than what was seen, or is not there.

        `record`: that of `spacePolicies` as JSON. What is not signed lifts nothing, and is for the
        worker to leave out.
        """
        known = self._memory.lifted(space_id)
        if record is None:
            return "set-back" if known else None
        try:
            found = msgspec.json.decode(record, type=StateRecord)
            if any(
                path not in found.fields or found.fields[path].at < at for path, at in known.items()
            ):
                return "set-back"
            stamps = self._stamps(space_id, record, found, space)
        except (ManaError, msgspec.DecodeError):
            return "malformed"
        await self._memory.saw_lifted(space_id, stamps)
        return None

    def _word(self, account: AccountId, told: ToldWork, space: Space) -> WorkWord:
        """Return the word of an account; raise unless one of its devices signed it for this hub."""
        seen = self._words.pop(account, None)
        if seen is None or seen[0] != told or seen[1] is not space:
            value = parse_json((told.word or "").encode("utf-8"))
            if not isinstance(value, dict):
                raise Malformed("a word is an object")
            word = WorkWord.from_wire(value)
            signer, key = space.authority().signer(told.signer, newest=word.at)
            hub = hub_id(VerifyKey(unb64(self._hub_key())))
            if (signer, word.account_id, word.hub) != (account, account, hub):
                raise Malformed("a word of another account, or for another hub")
            verify_work(key, word, unb64(told.signature))
            seen = (told, space, word)
        _keep(self._words, account, seen)
        return seen[2]

    def _stamps(
        self, space_id: SpaceId, record: str, found: StateRecord, space: Space
    ) -> dict[str, str]:
        """Return the stamps of what was lifted or taken back, as far as it was signed."""
        seen = self._lifted.pop(space_id, None)
        if seen is None or seen[0] != record or seen[1] is not space:
            stamps: dict[str, str] = {}
            if any(path.partition("/")[0] == LIFTED for path in found.fields):
                held = apply_state(None, found, guarded=by_stamp)
                stamps = lifted_stamps(space.authority(), held)
            seen = (record, space, stamps)
        _keep(self._lifted, space_id, seen)
        return seen[2]


def _keep(kept: dict[_K, _V], key: _K, value: _V) -> None:
    """Put something at the end, and drop what was asked for longest ago."""
    kept[key] = value
    if len(kept) > SEEN_MAX:
        del kept[next(iter(kept))]
