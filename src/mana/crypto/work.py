"""The signed word of a person on their account's work: whether it goes on, and its caps of a day.

A session's token may only tighten what a hub does for an account. Whatever loosens it is a word that
a device of the account signed, with the whole of what holds from then on. Hub, runner and devices
judge by it alike. Normative: docs/protocol/crypto.md, 7, and engine.md, 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from mana.crypto.errors import Malformed
from mana.crypto.signatures import VerifyKey
from mana.domain.clock import parse_iso_ms
from mana.domain.encoding import Json, canonical_json, length_prefixed, sha256
from mana.domain.errors import Invalid
from mana.domain.money import COST_PER_DAY_MAX, TOKENS_PER_DAY_MAX, smaller

PURPOSE: Final = "mana-ai-work:v1"
_HUB_ID: Final = re.compile("[0-9a-f]{64}")
REVISION_MAX: Final = 2**53 - 1
REVISIONS_AHEAD_MAX: Final = 2**26
"""By how much a word may leave behind what holds: more changes than anybody makes. Else one word, or
one lie of a hub, could use up all numbers, and no later word of the person would count.
"""


class Signing(Protocol):
    """A key that signs, or a hand that reaches one."""

    def sign(self, purpose: str, *parts: str | bytes) -> bytes:
        """Return 64 bytes over the purpose and the parts."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Whether work is stopped, and its caps of a day: tokens, and millionths; None: no cap."""

    stopped: bool = False
    tokens_per_day_max: int | None = None
    cost_per_day_max: int | None = None

    def covers(self, other: Limits) -> bool:
        """Say whether `other` lets nothing happen that these do not."""
        return self.within(other) == other

    def within(self, other: Limits) -> Limits:
        """Return the stricter of both, limit by limit."""
        return Limits(
            self.stopped or other.stopped,
            smaller(self.tokens_per_day_max, other.tokens_per_day_max),
            smaller(self.cost_per_day_max, other.cost_per_day_max),
        )


@dataclass(frozen=True, slots=True)
class WorkWord:
    """What a person signed last of their account's work on one hub.

    `hub`: as in `hub_id`. `revision` is greater than that of every word before. `at`: the moment,
    ISO with milliseconds and Z.
    """

    account_id: str
    hub: str
    revision: int
    limits: Limits
    at: str

    def to_wire(self) -> dict[str, Json]:
        """Return what is signed."""
        return {
            "version": "v1",
            "accountId": self.account_id,
            "hub": self.hub,
            "revision": self.revision,
            "stopped": self.limits.stopped,
            "tokensPerDayMax": self.limits.tokens_per_day_max,
            "costPerDayMax": self.limits.cost_per_day_max,
            "at": self.at,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Json]) -> WorkWord:
        """Read a word; raise Malformed for any other form. It proves nothing by itself."""
        match wire:
            case {
                "version": "v1",
                "accountId": str(account_id),
                "hub": str(hub),
                "revision": int(revision),
                "stopped": bool(stopped),
                "tokensPerDayMax": int() | None as tokens,
                "costPerDayMax": int() | None as cost,
                "at": str(at),
            } if len(wire) == 8 and not isinstance(revision, bool) and 0 < revision <= REVISION_MAX:
                _require_cap(tokens, TOKENS_PER_DAY_MAX)
                _require_cap(cost, COST_PER_DAY_MAX)
                _require_moment(at)
                return cls(account_id, hub, revision, Limits(stopped, tokens, cost), at)
        raise Malformed("not a word on an account's work")

    def canonical(self) -> bytes:
        """Return the bytes that are signed."""
        return canonical_json(self.to_wire())

    def digest(self) -> str:
        """Return the hash by which two words of one revision are told apart."""
        return sha256(self.canonical()).hex()


def sign_work(key: Signing, word: WorkWord) -> bytes:
    """Sign a word with the key of one of the account's devices."""
    return key.sign(PURPOSE, word.canonical())


def verify_work(key: VerifyKey, word: WorkWord, signature: bytes) -> None:
    """Raise SignatureRejected unless this key signed exactly this word."""
    key.verify(signature, PURPOSE, word.canonical())


def hub_id(key: VerifyKey) -> str:
    """Return what a word calls the hub that signs with this key: 64 hex digits."""
    return sha256(length_prefixed("mana-hub:v1", key.to_bytes())).hex()


def is_hub_id(said: str) -> bool:
    """Say whether this has the form of what a hub is called."""
    return _HUB_ID.fullmatch(said) is not None


def _require_cap(cap: int | None, most: int) -> None:
    if cap is not None and (isinstance(cap, bool) or not 0 <= cap <= most):
        raise Malformed("a cap is a whole number from 0, or none")


def _require_moment(at: str) -> None:
    try:
        parse_iso_ms(at)
    except Invalid:
        raise Malformed("a word is of a moment") from None
