"""The vault's statements, proofs, recovery codes and links: what holds, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.crypto import linking
from mana.crypto.errors import SealRejected, SignatureRejected, WrapRejected
from mana.crypto.hpke import HpkePrivateKey
from mana.crypto.identity import DeviceRevocation, revoke_device, verify_revocation
from mana.crypto.primitives import b64
from mana.crypto.signatures import SigningKey
from mana.crypto.vaults import (
    RecoveryCodeMalformed,
    VaultStatement,
    formers_hash,
    open_former_master,
    parse_recovery_code,
    recovery_code,
    recovery_keys,
    seal_former_master,
    sign_proof,
    sign_statement,
    verify_proof,
    verify_statement,
)
from mana.domain.errors import CryptoFailed

OLD, NEW = SigningKey(b"\x05" * 32), SigningKey(b"\x06" * 32)
LINK = "0123456789abcdef" * 2


def statement(key: SigningKey = OLD, **changes: Any) -> VaultStatement:
    made = VaultStatement(
        account_id="a1",
        revision=1,
        previous="",
        challenge=b64(bytes(32)),
        mode="standard",
        kdf={"salt": b64(bytes(16)), "t": 3, "mKib": 65_536, "p": 4},
        master_check=b64(bytes(16)),
        master_wrap="33" * 32,
        recovery="",
        signing_key=b64(key.public().to_bytes()),
        hpke_key=b64(bytes(1_216)),
        sealed_private="44" * 32,
        formers=formers_hash([], []),
        grants=True,
        changed_at="2026-11-21T05:23:00.123Z",
    )
    return replace(made, **changes)


def next_to(before: VaultStatement, **changes: Any) -> VaultStatement:
    return replace(before, revision=before.revision + 1, previous=before.hash(), **changes)


# Recovery codes


@given(st.binary(min_size=32, max_size=32))
def test_a_code_is_read_as_it_was_written(secret: bytes) -> None:
    """A code comes back however it was typed: case, white space, dashes of any kind."""
    code = recovery_code(secret)
    for typed in (code, code.lower(), code.replace("-", " "), f"\n{code.replace('-', '–')}\t"):
        assert parse_recovery_code(typed) == secret


@pytest.mark.parametrize("text", ["", "0000", "0" * 63, "0" * 65, "G" + "0" * 63, "0x" + "0" * 62])
def test_what_is_no_code_is_refused(text: str) -> None:
    """Anything else is refused with one code, and without saying where."""
    with pytest.raises(RecoveryCodeMalformed) as refused:
        parse_recovery_code(text)
    assert str(refused.value) == "not a recovery code"


def test_a_code_becomes_two_keys_that_say_nothing_of_each_other() -> None:
    """The key that signs in is not the one that wraps, and depends on the login's one form."""
    keys = recovery_keys(bytes(range(32)), "Ada")
    # The reference's documented value for this secret.
    assert keys.wrap_key.hex() == "e29b7101bde0a9a100f34002714421915c750f10a44c0cd963356057733d0cd4"
    assert keys.login_key != keys.wrap_key
    assert recovery_keys(bytes(range(32)), "aDA").login_key == keys.login_key
    assert recovery_keys(bytes(range(32)), "bob").login_key != keys.login_key
    assert "wrap_key" not in repr(keys)


# Statements


def test_statements_chain() -> None:
    """A statement counts only right after the one before, by the key that stood there."""
    first = statement()
    verify_statement(first, sign_statement(OLD, first), None, before=None, key_before=OLD.public())
    second = next_to(first, mode="zero-knowledge")
    signature = sign_statement(OLD, second)
    verify_statement(second, signature, None, before=first, key_before=OLD.public())
    for wrong in (
        replace(second, revision=3),
        replace(second, previous=""),
        replace(second, account_id="a2"),
        next_to(second),
    ):
        with pytest.raises(SignatureRejected):
            verify_statement(
                wrong, sign_statement(OLD, wrong), None, before=first, key_before=OLD.public()
            )
    with pytest.raises(SignatureRejected):
        verify_statement(
            second, sign_statement(NEW, second), None, before=first, key_before=OLD.public()
        )


def test_a_new_identity_signs_for_itself() -> None:
    """Old and new key sign a statement that names another identity; neither alone is enough."""
    first = statement()
    moved = next_to(first, signing_key=b64(NEW.public().to_bytes()))
    by_old, by_new = sign_statement(OLD, moved), sign_statement(NEW, moved)
    verify_statement(moved, by_old, by_new, before=first, key_before=OLD.public())
    for signature, own in ((by_old, None), (by_new, by_new), (by_old, by_old), (by_new, by_old)):
        with pytest.raises(SignatureRejected):
            verify_statement(moved, signature, own, before=first, key_before=OLD.public())
    same = next_to(first)
    by_old = sign_statement(OLD, same)
    with pytest.raises(SignatureRejected):
        verify_statement(same, by_old, by_old, before=first, key_before=OLD.public())


def test_every_member_of_a_statement_is_signed() -> None:
    """Another value in any member makes another hash and breaks the signature."""
    first = statement()
    signature = sign_statement(OLD, first)
    changes: dict[str, Any] = {
        "challenge": b64(bytes([1]) * 32),
        "mode": "zero-knowledge",
        "kdf": {"t": 1},
        "master_check": "x",
        "master_wrap": "x",
        "recovery": "x",
        "hpke_key": "x",
        "sealed_private": "x",
        "formers": "x",
        "grants": False,
        "changed_at": "x",
    }
    for name, value in changes.items():
        other = replace(first, **{name: value})
        assert other.hash() != first.hash()
        with pytest.raises(SignatureRejected):
            verify_statement(other, signature, None, before=None, key_before=OLD.public())
    assert len(changes) + 4 == len(first.to_wire()) - 1  # account, revision, previous, key; version


@pytest.mark.parametrize(
    "change",
    [
        {"version": "v2"},
        {"revision": 0},
        {"revision": True},
        {"revision": "1"},
        {"mode": "open"},
        {"kdf": []},
        {"grants": 1},
        {"more": 1},
        {"accountId": None},
    ],
)
def test_another_form_is_no_statement(change: dict[str, Any]) -> None:
    """A statement has exactly its members, of exactly their kinds."""
    with pytest.raises(CryptoFailed):
        VaultStatement.from_wire({**statement().to_wire(), **change})


def test_the_hash_is_over_canonical_json() -> None:
    """Another implementation gets the same hash from sorted keys and no spaces."""
    made = statement()
    text = json.dumps(made.to_wire(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert made.hash() == hashlib.sha256(text.encode()).hexdigest()
    assert VaultStatement.from_wire(made.to_wire()) == made


# Former keys, proofs and revoked devices


def test_a_new_master_key_opens_the_former_one_and_not_the_other_way() -> None:
    """Only the key in force opens what came before, and only under its own check value."""
    new, old = b"\x42" * 32, b"\x41" * 32
    check, sealed = seal_former_master(new, old, "a1")
    assert open_former_master(new, check, sealed, "a1") == old
    other_check, _ = seal_former_master(new, b"\x40" * 32, "a1")
    for key, named, account in ((old, check, "a1"), (new, check, "a2"), (new, other_check, "a1")):
        with pytest.raises(SealRejected):
            open_former_master(key, named, sealed, account)


@pytest.mark.parametrize("at", range(4))
def test_a_proof_is_for_one_action_once(at: int) -> None:
    """A proof holds for its account, action, challenge and body, and for nothing else."""
    facts: list[Any] = ["a1", "link-approve", b64(bytes(32)), {"linkId": LINK}]
    signature = sign_proof(OLD, *facts)
    verify_proof(OLD.public(), signature, *facts)
    others: list[Any] = ["a2", "factor-remove", b64(bytes([1]) * 32), {"linkId": "0" * 32}]
    facts[at] = others[at]
    with pytest.raises(SignatureRejected):
        verify_proof(OLD.public(), signature, *facts)


def test_a_device_is_revoked_by_its_account_alone() -> None:
    """A revocation holds for its device and moment, by the account's identity."""
    made = revoke_device(OLD, "a1", "d1", "2026-11-21T05:23:00.123Z")
    verify_revocation(made, OLD.public(), "a1")
    wrong: list[tuple[DeviceRevocation, SigningKey, str]] = [
        (made, NEW, "a1"),
        (made, OLD, "a2"),
        (replace(made, device_id="d2"), OLD, "a1"),
        (replace(made, revoked_at="2026-11-22T05:23:00.123Z"), OLD, "a1"),
    ]
    for one, key, account in wrong:
        with pytest.raises(CryptoFailed):
            verify_revocation(one, key.public(), account)


# Links

HPKE, OTHER_HPKE = HpkePrivateKey(bytes(range(96))), HpkePrivateKey(bytes(range(1, 97)))
KEYS = linking.LinkKeys(HPKE.public(), NEW.public(), "d9")
NONCE, OLD_NONCE = b"\x01" * 32, b"\x02" * 32


def digits(
    link: str = LINK,
    login: str = "ada",
    account: str = "a1",
    keys: linking.LinkKeys = KEYS,
    new: bytes = NONCE,
    old: bytes = OLD_NONCE,
) -> str:
    return linking.link_digits(link, login, account, keys, new, old)


@pytest.mark.parametrize(
    "other",
    [
        lambda: digits(link="f" * 32),
        lambda: digits(login="bob"),
        lambda: digits(account="a2"),
        lambda: digits(keys=replace(KEYS, hpke_key=OTHER_HPKE.public())),
        lambda: digits(keys=replace(KEYS, device_key=OLD.public())),
        lambda: digits(keys=replace(KEYS, device_id="d8")),
        lambda: digits(new=OLD_NONCE),
        lambda: digits(old=NONCE),
    ],
)
def test_whoever_swaps_anything_shows_other_digits(other: Callable[[], str]) -> None:
    """The digits cover both nonces, the keys, the account, the login and the link."""
    assert other() != digits()
    assert [len(group) for group in digits().split(" ")] == [6, 6]


def test_a_commitment_opens_to_one_key_and_nonce() -> None:
    """What was committed to is what is revealed, or nothing goes on."""
    commitment = linking.commit(LINK, "ada", KEYS, NONCE)
    linking.open_commitment(commitment, LINK, "ada", KEYS, NONCE)
    for link, login, keys, nonce in (
        ("f" * 32, "ada", KEYS, NONCE),
        (LINK, "bob", KEYS, NONCE),
        (LINK, "ada", replace(KEYS, hpke_key=OTHER_HPKE.public()), NONCE),
        (LINK, "ada", KEYS, OLD_NONCE),
    ):
        with pytest.raises(SignatureRejected):
            linking.open_commitment(commitment, link, login, keys, nonce)


def test_a_master_key_is_handed_to_one_device_in_one_link() -> None:
    """Another key, link, account or other digits do not open it."""
    master = b"\x42" * 32
    wrapped = linking.hand_over(master, LINK, "a1", digits(), KEYS)
    assert linking.receive(wrapped, LINK, "a1", digits(), HPKE) == master
    for link, account, shown, key in (
        ("f" * 32, "a1", digits(), HPKE),
        (LINK, "a2", digits(), HPKE),
        (LINK, "a1", "000000 000000", HPKE),
        (LINK, "a1", digits(), OTHER_HPKE),
    ):
        with pytest.raises(WrapRejected):
            linking.receive(wrapped, link, account, shown, key)


def test_the_old_nonce_is_of_one_master_key_link_and_commitment() -> None:
    """Whoever does not hold the master key that gave the nonce hands over nothing."""
    master, commitment = b"\x42" * 32, linking.commit(LINK, "ada", KEYS, NONCE)
    nonce = linking.old_nonce(master, LINK, commitment)
    linking.open_old_nonce(nonce, master, LINK, commitment)
    for key, link, committed in (
        (b"\x43" * 32, LINK, commitment),
        (master, "f" * 32, commitment),
        (master, LINK, OLD_NONCE),
    ):
        assert linking.old_nonce(key, link, committed) != nonce
        with pytest.raises(WrapRejected):
            linking.open_old_nonce(nonce, key, link, committed)
