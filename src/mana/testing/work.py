"""Words on an account's work as a device signs them, without a device: for tests of hub and runner."""

from __future__ import annotations

from typing import Final

from mana.crypto.primitives import b64
from mana.crypto.signatures import SigningKey
from mana.crypto.work import Limits, WorkWord, sign_work
from mana.protocol.messages import SetWork, Signature, SignedWork, WorkState
from mana.testing.accounts import NewAccount

AT: Final = "2026-11-21T05:23:00.123Z"


def limits_of(state: WorkState) -> Limits:
    """Return what a hub says that holds for an account."""
    return Limits(state.stopped_at is not None, state.tokens_per_day_max, state.cost_per_day_max)


def next_word(account: NewAccount, state: WorkState, limits: Limits) -> WorkWord:
    """Return the word that may follow what a hub says."""
    return WorkWord(account.account_id, state.hub, state.revision + 1, limits, AT)


def signed_work(account: NewAccount, word: WorkWord, *, key: SigningKey | None = None) -> SetWork:
    """Return a word as the account's first device hands it over. `key`: another's."""
    value = b64(sign_work(key or account.device_key, word))
    return SetWork(
        signed=SignedWork(word.to_wire(), Signature(signer=account.device_id, value=value))
    )
