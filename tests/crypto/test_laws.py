"""Laws of seals, wraps, signatures and grants: what goes in comes out, and only there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)
from hypothesis import example, given
from hypothesis import strategies as st

from mana.crypto import errors, hpke, rsa
from mana.crypto.envelope import (
    SIZE_STEP,
    Binding,
    RecordBinding,
    RecordKey,
    actor_bytes,
    element_token,
    is_envelope,
    open_field,
    parse_envelope,
    parse_json,
    seal_field,
    size_class,
)
from mana.crypto.errors import (
    KdfTooCostly,
    KdfTooWeak,
    LoginRejected,
    Malformed,
    SealRejected,
    SignatureRejected,
    WrapRejected,
)
from mana.crypto.grants import (
    SealedGrant,
    countersign_grant,
    derive_mission_data_key,
    mission_data_key_v1,
    open_grant,
    seal_grant,
    verify_grant,
)
from mana.crypto.hpke import HpkePrivateKey, HpkePublicKey
from mana.crypto.identity import (
    DeviceCertificate,
    PrivateIdentity,
    PublicIdentity,
    certify_device,
    verify_certificate,
)
from mana.crypto.keys import (
    RecordKeys,
    SpaceKeyName,
    key_check,
    mission_key,
    new_key,
    open_secret,
    record_key,
    seal_secret,
    unwrap_master_key,
    unwrap_space_key,
    wrap_master_key,
    wrap_space_key,
)
from mana.crypto.passwords import (
    FLOOR,
    HashCost,
    KdfFloor,
    KdfParameters,
    derive_password_keys,
    hash_login_key,
    token_hash,
    verify_login_key,
)
from mana.crypto.primitives import Deriver, b64, hkdf, unb64
from mana.crypto.rsa import RsaPrivateKey
from mana.crypto.runners import RunnerPrivateKey, RunnerPublicKey
from mana.crypto.signatures import (
    ChangeFacts,
    RunnerWrite,
    SigningKey,
    VerifyKey,
    audit_hash,
    entry_hash,
    sign_change,
    sign_runner_write,
    value_hash,
    verify_change,
    verify_runner_write,
)
from mana.crypto.wrapping import (
    WrapPrivateKey,
    generate_wrap_key,
    load_wrap_public,
    wrap_private_from_pem,
    wrap_private_to_pem,
    wrap_public_from_pem,
    wrap_public_to_pem,
)
from mana.domain.encoding import canonical_json, length_prefixed, sha256
from mana.domain.errors import CryptoFailed, Invalid

words = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
json_values = st.recursive(
    scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
bindings = st.builds(
    Binding,
    space=words,
    table=words,
    record=words,
    path=words,
    at=words,
    actor=st.dictionaries(words, words, max_size=2),
)
raw_keys = st.binary(min_size=32, max_size=32)
versions = st.integers(1, 999_999_999)

RUNNER = RunnerPrivateKey.generate()
KEYS: dict[str, WrapPrivateKey] = {hpke.SUITE: RUNNER.hpke_key, rsa.SUITE: RUNNER.rsa_key}
CHEAP = KdfFloor(t=1, m_kib=8, p=1)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8 % len(data)] ^= 1 << bit % 8
    return bytes(changed)


# --------------------------------------------------------------------- fields


@given(raw_keys, st.sampled_from("spm"), versions, bindings, json_values)
def test_field_round_trip(key: bytes, cls: Any, version: int, binding: Binding, value: Any) -> None:
    """A field opens, under its key and at its place, to the value that was sealed."""
    record = RecordKey(key)
    text = seal_field(record, cls=cls, version=version, binding=binding, value=value)
    envelope = parse_envelope(text)
    assert (envelope.cls, envelope.version) == (cls, version)
    assert is_envelope(text)
    assert open_field(record, text, binding=binding) == value


@given(bindings, bindings)
def test_field_is_bound(here: Binding, there: Binding) -> None:
    """A field that is moved to any other place does not open."""
    record = RecordKey(bytes(32))
    text = seal_field(record, cls="s", version=1, binding=here, value="x")
    if here.associated_data() != there.associated_data():
        with pytest.raises(SealRejected):
            open_field(record, text, binding=there)


@pytest.mark.parametrize("member", [one.name for one in dataclasses.fields(Binding)])
def test_every_member_is_bound(member: str) -> None:
    """Space, table, record, path, stamp and actor are each bound on their own."""
    here = Binding("s", "t", "r", "p", "a", {"kind": "user"})
    there = dataclasses.replace(here, **{member: {"kind": "ai"} if member == "actor" else "x"})
    text = seal_field(RecordKey(bytes(32)), cls="s", version=1, binding=here, value="x")
    with pytest.raises(SealRejected):
        open_field(RecordKey(bytes(32)), text, binding=there)


@given(st.integers(0, 48 * 8 - 1), st.integers(0, 12 * 8 - 1), st.integers(0, 255))
def test_field_no_bit_bends(bit: int, iv_bit: int, key_bit: int) -> None:
    """One flipped bit of ciphertext, tag, iv or key, and nothing opens."""
    binding = Binding("s", "t", "r", "p", "a", {})
    record = RecordKey(bytes(32))
    text = seal_field(record, cls="s", version=1, binding=binding, value="secret")
    head, iv, ciphertext = text[:9], text[9:25], text[26:]
    changed = f"{head}{iv}.{b64(flip(unb64(ciphertext), bit))}"
    changed_iv = f"{head}{b64(flip(unb64(iv), iv_bit))}.{ciphertext}"
    for other, key in (
        (changed, bytes(32)),
        (changed_iv, bytes(32)),
        (text, flip(bytes(32), key_bit)),
    ):
        with pytest.raises(SealRejected):
            open_field(RecordKey(key), other, binding=binding)


@given(st.integers(0, 5 * SIZE_STEP))
@example(32)
@example(33)
@example(4096)
@example(4097)
def test_size_class(length: int) -> None:
    """A size class holds its value, is its own class, and wastes less than it must."""
    size = size_class(length)
    assert size >= max(32, length)
    assert size_class(size) == size
    assert size == 32 or size < 2 * length
    assert size % SIZE_STEP == 0 or size & (size - 1) == 0


def test_lengths_hide() -> None:
    """Short answers of different length make envelopes of one length."""
    binding = Binding("s", "t", "r", "p", "a", {})
    record = RecordKey(bytes(32))
    sealed = {
        len(seal_field(record, cls="s", version=1, binding=binding, value=value))
        for value in (True, False, "", "yes", 0, None, "x" * 30)
    }
    assert len(sealed) == 1


GOOD = "enc:2:s1:AAECAwQFBgcICQoL." + b64(bytes(48))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        GOOD + "\n",
        " " + GOOD,
        GOOD.replace("enc:2", "enc:1"),
        GOOD.replace(":s1:", ":x1:"),
        GOOD.replace(":s1:", ":s0:"),
        GOOD.replace(":s1:", ":s01:"),
        GOOD.replace(":s1:", ":s:"),
        GOOD.replace(":s1:", ":s1234567890:"),
        GOOD.replace(":s1:", ":s\u0661:"),
        GOOD.replace("AAECAwQFBgcICQoL", "AAECAwQFBgcICQ=="),
        GOOD.replace(".", ""),
        GOOD[:-4],
        GOOD.replace("AAEC", "-_EC"),
        "enc:2:s1:AAECAwQFBgcICQoL." + b64(bytes(47)),
        "enc:2:s1:AAECAwQFBgcICQoL." + b64(bytes(49)),
        "enc:2:s1:AAECAwQFBgcICQoL." + b64(bytes(16)),
        "enc:2:s1:AAECAwQFBgcICQoL." + b64(bytes(3 * 1024 + 16)),
        # 80 bytes end in one padding sign: other unused bits spell the same bytes.
        "enc:2:s1:AAECAwQFBgcICQoL." + b64(bytes(80))[:-2] + "B=",
    ],
)
def test_envelope_form_is_strict(text: str) -> None:
    """There is one spelling of an envelope, and it is known without a key."""
    assert is_envelope(GOOD)
    assert not is_envelope(text)
    with pytest.raises(Malformed):
        parse_envelope(text)


@given(words | st.none() | st.integers())
def test_only_envelopes_look_like_one(value: object) -> None:
    """No value of a person is taken for an envelope, and asking never raises."""
    assert not is_envelope(value)


def test_plaintext_is_strict() -> None:
    """Sealed bytes that are not plain JSON raise, without quoting what was sealed."""
    binding = Binding("s", "t", "r", "p", "a", {})
    record = RecordKey(bytes(32))
    for secret in (b"NaN", b'{"a":1,"a":2}', b"\xff", b"hunter2", b"[" * 4096):
        padded = secret.ljust(size_class(len(secret)))
        ciphertext = record.aead.seal(bytes(12), padded, binding.associated_data())
        with pytest.raises(Malformed) as caught:
            open_field(record, f"enc:2:s1:{b64(bytes(12))}.{b64(ciphertext)}", binding=binding)
        assert caught.value.__cause__ is None
        assert "hunter2" not in str(caught.value)
    with pytest.raises(Invalid):
        seal_field(record, cls="s", version=1, binding=binding, value="\ud800")


@given(raw_keys, raw_keys, words, json_values)
def test_element_tokens(key: bytes, other: bytes, field: str, element: Any) -> None:
    """A token is the same for the same element, and another under another record's key."""
    token = element_token(RecordKey(key), field, element)
    assert token == element_token(RecordKey(key), field, element)
    assert len(token) == 22
    assert (token == element_token(RecordKey(other), field, element)) == (key == other)
    assert token != element_token(RecordKey(key), field + "x", element)


# ----------------------------------------------------------------------- keys


@given(raw_keys, words, words)
def test_derived_keys_differ(parent: bytes, one: str, two: str) -> None:
    """Keys of different records, missions and purposes are different keys."""
    made = [
        record_key(parent, one, two),
        record_key(parent, one + "x", two),
        record_key(parent, one, two + "x"),
        mission_key(parent, one),
        mission_key(parent, one + "x"),
        parent,
    ]
    assert len(set(made)) == len(made)
    if one:
        assert record_key(parent, one, two) != record_key(parent, one[:-1], one[-1] + two)


@given(raw_keys, raw_keys, words, words)
def test_master_key_wraps(master: bytes, wrapping: bytes, account: str, key_id: str) -> None:
    """The master key comes back only for its purpose, account and wrapping key."""
    text = wrap_master_key(master, wrapping, "unlock", account, key_id)
    assert unwrap_master_key(text, wrapping, "unlock", account, key_id) == master
    refused: list[tuple[bytes, Any, str, str]] = [
        (wrapping, "kek", account, key_id),
        (wrapping, "unlock", account + "x", key_id),
        (wrapping, "unlock", account, key_id + "x"),
        (flip(wrapping, 0), "unlock", account, key_id),
    ]
    for key, purpose, who, which in refused:
        with pytest.raises(WrapRejected):
            unwrap_master_key(text, key, purpose, who, which)
    with pytest.raises(Malformed):
        unwrap_master_key(text.replace("mk:1:", "sec:1:"), wrapping, "unlock", account, key_id)


@given(raw_keys, st.binary(max_size=200), words, st.lists(words, max_size=3))
def test_secrets(master: bytes, secret: bytes, purpose: str, context: list[str]) -> None:
    """A sealed secret opens for its purpose and context only."""
    text = seal_secret(master, secret, purpose, "account", *context)
    assert open_secret(master, text, purpose, "account", *context) == secret
    for where in ((purpose + "x", "account", *context), (purpose, "account", *context, "")):
        with pytest.raises(SealRejected):
            open_secret(master, text, *where)


def test_space_key_wraps() -> None:
    """A space key unwraps only as its kind, space, version and recipient say."""
    name = SpaceKeyName("s", "space", 2, "ada")
    wrapped = wrap_space_key(bytes(32), RUNNER.hpke_key.public(), name)
    assert unwrap_space_key(wrapped, RUNNER.hpke_key, name) == bytes(32)
    for other in (
        SpaceKeyName("p", "space", 2, "ada"),
        SpaceKeyName("s", "spice", 2, "ada"),
        SpaceKeyName("s", "space", 3, "ada"),
        SpaceKeyName("s", "space", 2, "bob"),
    ):
        with pytest.raises(WrapRejected):
            unwrap_space_key(wrapped, RUNNER.hpke_key, other)
    with pytest.raises(WrapRejected):
        unwrap_space_key(wrapped, HpkePrivateKey.generate(), name)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_keys_have_32_bytes(length: int) -> None:
    """No function takes a key of another length, or makes one."""
    key = bytes(length)
    calls: list[Callable[[], object]] = [
        lambda: RecordKey(key),
        lambda: record_key(key, "t", "r"),
        lambda: mission_key(key, "m"),
        lambda: key_check(key, "l", 1),
        lambda: wrap_master_key(key, bytes(32), "kek", "a", "k"),
        lambda: wrap_master_key(bytes(32), key, "kek", "a", "k"),
        lambda: wrap_space_key(key, RUNNER.hpke_key.public(), SpaceKeyName("s", "s", 1, "a")),
        lambda: derive_mission_data_key(key, "m", b"{}"),
        lambda: hash_login_key(key),
        lambda: SigningKey(key),
        lambda: VerifyKey(key),
        lambda: HpkePrivateKey(key),
        lambda: HpkePublicKey(key),
        lambda: RsaPrivateKey(key),
        lambda: new_key(random=lambda count: key),
    ]
    for call in calls:
        with pytest.raises(Malformed):
            call()


def test_key_checks() -> None:
    """A check value tells another key, label or version, and refuses version 0."""
    checks = {
        key_check(bytes(32), "a", 1),
        key_check(bytes(32), "b", 1),
        key_check(bytes(32), "a", 2),
        key_check(bytes([1] * 32), "a", 1),
    }
    assert len(checks) == 4
    with pytest.raises(Malformed):
        key_check(bytes(32), "a", 0)


# ------------------------------------------------------------------ passwords


def test_kdf_floor() -> None:
    """A device derives nothing from a password below the floor or above the ceiling."""
    good = KdfParameters.new()
    good.check_floor()
    assert (good.t, good.m_kib, good.p) == (FLOOR.t, FLOOR.m_kib, FLOOR.p) == (3, 65536, 4)
    for change in ({"t": 2}, {"m_kib": 65535}, {"p": 3}, {"t": -1}):
        with pytest.raises(KdfTooWeak):
            derive_password_keys("p", "n", dataclasses.replace(good, **change))
    for change in ({"t": 17}, {"m_kib": 2**21}, {"p": 17}):
        with pytest.raises(KdfTooCostly):
            derive_password_keys("p", "n", dataclasses.replace(good, **change))
    with pytest.raises(Malformed):
        dataclasses.replace(good, salt=b"short").check_floor()


def test_kdf_wire() -> None:
    """Parameters survive the wire, and no other shape is taken for them."""
    good = KdfParameters.new()
    assert KdfParameters.from_wire(good.to_wire()) == good
    for change in ({"t": True}, {"t": "3"}, {"salt": None}, {"p": 1.0}, {"salt": "!"}):
        with pytest.raises(Malformed):
            KdfParameters.from_wire({**good.to_wire(), **change})


def test_password_keys_are_apart() -> None:
    """Login key and unlock key differ, follow password, name and salt, and are not shown."""
    cheap = KdfParameters(bytes(16), t=1, m_kib=8, p=1)
    one = derive_password_keys("pass", "Ada", cheap, floor=CHEAP)
    assert one == derive_password_keys("pass", "aDA", cheap, floor=CHEAP)
    named = derive_password_keys("pass", "bob", cheap, floor=CHEAP)
    other = derive_password_keys("Pass", "ada", cheap, floor=CHEAP)
    assert len({one.login_key, one.unlock_key, named.login_key, other.login_key}) == 4
    assert other.unlock_key != one.unlock_key
    assert one.login_key.hex() not in repr(one)
    assert repr(one.unlock_key) not in repr(one)
    with pytest.raises(Malformed):
        derive_password_keys("\ud800", "ada", cheap, floor=CHEAP)


def test_login_hash() -> None:
    """The hub's hash takes its login key, refuses others, and is salted."""
    cheap = HashCost(t=1, m_kib=8)
    encoded = hash_login_key(bytes(32), cost=cheap)
    verify_login_key(encoded, bytes(32))
    assert encoded != hash_login_key(bytes(32), cost=cheap)
    with pytest.raises(LoginRejected):
        verify_login_key(encoded, bytes([1] * 32))
    for broken in ("", "no hash", "ü", encoded[:-8]):
        with pytest.raises(CryptoFailed):
            verify_login_key(broken, bytes(32))
    assert token_hash(b"a") != token_hash(b"b")


# ---------------------------------------------------------------------- wraps


@pytest.mark.parametrize("suite", KEYS)
def test_wrap_round_trip(suite: str) -> None:
    """A wrap opens with its own key, through raw bytes and PEM alike, and no other."""
    key = KEYS[suite]
    assert key.suite == suite
    public = load_wrap_public(suite, key.public().to_bytes())
    assert wrap_public_from_pem(wrap_public_to_pem(public)) == public
    again = wrap_private_from_pem(wrap_private_to_pem(key).replace("\n", "\\n"))
    wrapped = public.wrap(b"x" * 32, b"info")
    assert len(wrapped) == (1168 if suite == hpke.SUITE else 256)
    assert again.unwrap(wrapped, b"info") == b"x" * 32
    with pytest.raises(WrapRejected):
        generate_wrap_key(suite).unwrap(wrapped, b"info")
    for broken in (b"", wrapped[:-1], wrapped + b"x", flip(wrapped, 7), flip(wrapped, 1333)):
        with pytest.raises(WrapRejected):
            key.unwrap(broken, b"info")


@given(st.integers(0, 1168 * 8 - 1))
def test_hpke_no_bit_bends(bit: int) -> None:
    """One flipped bit of an HPKE wrap, wherever, and it stays closed."""
    wrapped = RUNNER.hpke_key.public().wrap(b"x" * 32, b"info")
    with pytest.raises(WrapRejected):
        RUNNER.hpke_key.unwrap(flip(wrapped, bit), b"info")


def test_hpke_info() -> None:
    """HPKE opens for the same `info` only."""
    wrapped = RUNNER.hpke_key.public().wrap(b"x", b"info")
    with pytest.raises(WrapRejected):
        RUNNER.hpke_key.unwrap(wrapped, b"inf")


def test_bad_public_keys() -> None:
    """A public key that is none, or that would let others read, is refused."""
    with pytest.raises(Malformed):
        HpkePublicKey(b"\xff" * 1216)
    low_order = HpkePublicKey(RUNNER.hpke_key.public().to_bytes()[:1184] + bytes(32))
    with pytest.raises(WrapRejected):
        low_order.wrap(b"x", b"")
    for suite in ("", "rsa-oaep-4096"):
        with pytest.raises(Malformed):
            load_wrap_public(suite, b"")
        with pytest.raises(Malformed):
            generate_wrap_key(suite)
    for text in ("", "garbage", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"):
        with pytest.raises(Malformed):
            wrap_public_from_pem(text)
        with pytest.raises(Malformed):
            wrap_private_from_pem(text)
    with pytest.raises(Malformed):
        RUNNER.rsa_key.public().wrap(bytes(191), b"")


def test_runner_bundle() -> None:
    """A runner's bundle survives PEM; the private one is never taken for the public."""
    public = RUNNER.public()
    assert RunnerPublicKey.from_pem(public.to_pem()) == public
    assert RunnerPrivateKey.from_pem(RUNNER.to_pem()).public() == public
    assert len(public.key_id()) == 64
    assert public.key_id().startswith(public.fingerprint().replace(" ", ""))
    for suite, key in KEYS.items():
        assert public.wrap_key(suite) == key.public()
        assert RUNNER.unwrap_key(suite) == key
    with pytest.raises(Malformed):
        RunnerPublicKey.from_pem(RUNNER.to_pem())
    with pytest.raises(Malformed):
        RunnerPrivateKey.from_pem(public.to_pem())
    with pytest.raises(Malformed):
        public.wrap_key("none")


# ----------------------------------------------------------------- signatures


@given(words, st.lists(words | st.binary(max_size=8), max_size=4), st.integers(0, 511))
def test_signatures(purpose: str, parts: list[str | bytes], bit: int) -> None:
    """A signature holds for its purpose and parts, and for nothing beside them."""
    key = SigningKey(bytes(32))
    signature = key.sign(purpose, *parts)
    key.public().verify(signature, purpose, *parts)
    others: list[tuple[str, list[str | bytes]]] = [
        (purpose + "x", parts),
        (purpose, [*parts, ""]),
        (purpose, ["x", *parts]),
    ]
    for other, statement in others:
        with pytest.raises(SignatureRejected):
            key.public().verify(signature, other, *statement)
    with pytest.raises(SignatureRejected):
        key.public().verify(flip(signature, bit), purpose, *parts)
    with pytest.raises(SignatureRejected):
        SigningKey(bytes([1] * 32)).public().verify(signature, purpose, *parts)


def test_signing_pem() -> None:
    """Ed25519 keys survive PEM, in the form that other software reads."""
    key = SigningKey.generate()
    assert SigningKey.from_pem(key.to_pem()).to_bytes() == key.to_bytes()
    assert VerifyKey.from_pem(key.public().to_pem()) == key.public()
    private: Any = load_pem_private_key(key.to_pem().encode(), None)
    public: Any = load_pem_public_key(key.public().to_pem().encode())
    assert private.private_bytes_raw() == key.to_bytes()
    assert public.public_bytes_raw() == key.public().to_bytes()
    with pytest.raises(Malformed):
        SigningKey.from_pem(key.public().to_pem())
    with pytest.raises(Malformed):
        VerifyKey.from_pem(wrap_public_to_pem(RUNNER.rsa_key.public()))


FACTS = ChangeFacts(
    "s", "t", "r", "c", "a", "space", {"kind": "user"}, "user", {"p": ("at", value_hash("v"))}
)


@pytest.mark.parametrize("member", [one.name for one in dataclasses.fields(ChangeFacts)])
def test_every_fact_is_signed(member: str) -> None:
    """A signed change says nothing else once any of its facts is another."""
    key = SigningKey(bytes(32))
    signature = sign_change(key, FACTS)
    verify_change(key.public(), FACTS, signature)
    other: Any = {
        "actor": {"kind": "ai"},
        "entries": {"p": ("at", value_hash("w"))},
    }.get(member, "x")
    with pytest.raises(SignatureRejected):
        verify_change(key.public(), dataclasses.replace(FACTS, **{member: other}), signature)


WRITE = RunnerWrite("m", "at", "g", 1, "d", 2, "h")


@pytest.mark.parametrize("member", [one.name for one in dataclasses.fields(RunnerWrite)])
def test_runner_write_is_signed(member: str) -> None:
    """A runner's signature holds for one occurrence, grant, fence, write and audit head."""
    key = SigningKey(bytes(32))
    signature = sign_runner_write(key, WRITE)
    verify_runner_write(key.public(), WRITE, signature)
    other: Any = 9 if member in ("fence", "audit_seq") else "x"
    with pytest.raises(SignatureRejected):
        verify_runner_write(key.public(), dataclasses.replace(WRITE, **{member: other}), signature)


@given(st.dictionaries(words, words, max_size=3), st.dictionaries(words, words, max_size=3))
def test_chains(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Another row or entry, or another one before it, is another hash."""
    assert (audit_hash("a", one) == audit_hash("a", two)) == (one == two)
    assert audit_hash("a", one) != audit_hash("b", one)
    assert (entry_hash(one, b"s") == entry_hash(two, b"s")) == (one == two)
    assert entry_hash(one, b"s") != entry_hash(one, b"t")


def test_identity() -> None:
    """An identity comes back from its seal only under its key and for its public halves."""
    made = PrivateIdentity.generate("ada")
    public = made.public()
    sealed = made.seal(bytes(32))
    assert PublicIdentity.from_wire(public.to_wire()) == public
    assert PrivateIdentity.open(bytes(32), sealed, public).public() == public
    with pytest.raises(SealRejected):
        PrivateIdentity.open(bytes([1] * 32), sealed, public)
    with pytest.raises(SealRejected):
        PrivateIdentity.open(bytes(32), sealed, PrivateIdentity.generate("ada").public())
    swapped = PrivateIdentity.generate("ada").hpke_key.to_bytes() + made.signing_key.to_bytes()
    foreign = seal_secret(bytes(32), swapped, "identity", "ada", public.fingerprint())
    with pytest.raises(Malformed):
        PrivateIdentity.open(bytes(32), foreign, public)
    assert public.fingerprint() != PrivateIdentity.generate("ada").public().fingerprint()
    for change in ({"version": "v2"}, {"extra": "x"}, {"signingKey": 1}):
        with pytest.raises(Malformed):
            PublicIdentity.from_wire({**public.to_wire(), **change})


@pytest.mark.parametrize("member", ["accountId", "deviceId", "publicKey", "createdAt"])
def test_certificates(member: str) -> None:
    """A certificate holds for the account, device, key and moment that were signed."""
    key, device = SigningKey(bytes(32)), SigningKey(bytes([1] * 32)).public()
    made = certify_device(key, "ada", "phone", device, "now")
    assert DeviceCertificate.from_wire(made.to_wire()) == made
    assert verify_certificate(made, key.public(), "ada") == device
    with pytest.raises(Malformed):
        verify_certificate(made, key.public(), "bob")
    other = b64(key.public().to_bytes()) if member == "publicKey" else "x"
    changed = DeviceCertificate.from_wire({**made.to_wire(), member: other})
    with pytest.raises(CryptoFailed):
        verify_certificate(changed, key.public(), "ada")
    with pytest.raises(SignatureRejected):
        verify_certificate(changed, key.public(), changed.account_id)


# --------------------------------------------------------------------- grants

HEADER = canonical_json({"version": "v2", "recordIds": ["notes:1"]})
OTHER_HEADER = canonical_json({"version": "v2", "recordIds": ["notes:1", "notes:2"]})
PAYLOAD = {"records": {"notes:1": {"k": b64(bytes(32)), "e": "s1"}}}
GRANTOR, HUB = SigningKey(bytes(32)), SigningKey(bytes([1] * 32))


def _open(
    grant: SealedGrant,
    *,
    header: bytes = HEADER,
    mission: str = "m",
    runner: WrapPrivateKey,
    countersigned: bytes | None = None,
) -> dict[str, Any]:
    signature = countersigned or countersign_grant(HUB, header, grant)
    keys = {"device": GRANTOR.public(), "hub": HUB.public()}
    return open_grant(header, mission, grant, signature, runner=runner, **keys)


@pytest.mark.parametrize("suite", KEYS)
def test_grant_round_trip(suite: str) -> None:
    """A grant opens, for its runner, to the keys that the device put in."""
    grant = seal_grant(HEADER, "m", PAYLOAD, runner=KEYS[suite].public(), device=GRANTOR)
    verify_grant(HEADER, grant, device=GRANTOR.public())
    assert _open(grant, runner=KEYS[suite]) == PAYLOAD
    assert grant.sealed_keys not in repr(grant)


@pytest.mark.parametrize("suite", KEYS)
def test_grant_opens_nothing_else(suite: str) -> None:
    """Another header, mission, runner, key or signature opens nothing, and says which it was."""
    key = KEYS[suite]
    grant = seal_grant(HEADER, "m", PAYLOAD, runner=key.public(), device=GRANTOR)
    good = countersign_grant(HUB, HEADER, grant)

    def resigned(**change: Any) -> SealedGrant:
        """Return a changed grant that the device itself signed: the worst honest mistake."""
        other = dataclasses.replace(grant, **change)
        parts = (sha256(other.wrapped_key), sha256(other.sealed_keys.encode()))
        signature = GRANTOR.sign("mana-grant:v2", HEADER, *parts)
        return dataclasses.replace(other, signature=signature)

    with pytest.raises(SignatureRejected):
        _open(grant, header=OTHER_HEADER, runner=key)
    with pytest.raises(SignatureRejected):
        _open(dataclasses.replace(grant, wrapped_key=flip(grant.wrapped_key, 9)), runner=key)
    with pytest.raises(SignatureRejected):
        _open(dataclasses.replace(grant, sealed_keys=grant.sealed_keys + "A"), runner=key)
    with pytest.raises(SignatureRejected):
        _open(grant, runner=key, countersigned=flip(good, 3))
    with pytest.raises(SignatureRejected):
        _open(grant, runner=key, countersigned=GRANTOR.sign("mana-grant-hub:v2", HEADER))
    with pytest.raises(WrapRejected):
        _open(grant, mission="other", runner=key)
    with pytest.raises(WrapRejected):
        _open(grant, runner=generate_wrap_key(suite))
    with pytest.raises(WrapRejected):
        _open(resigned(wrapped_key=flip(grant.wrapped_key, 9)), runner=key)
    with pytest.raises(Malformed):
        _open(resigned(sealed_keys="gk:1:"), runner=key)
    with pytest.raises(Malformed):
        _open(dataclasses.replace(grant, sealed_keys="\ud800"), runner=key)
    info = length_prefixed("mana-grant-wrap:v2", sha256(HEADER).hex())
    short = resigned(wrapped_key=key.public().wrap(bytes(31), info))
    with pytest.raises(Malformed):
        _open(short, runner=key)


@pytest.mark.parametrize("header", [b"", b"[]", b'{"b":1,"a":2}', b'{"a": 1}', b'{"a":1,"a":1}'])
def test_grant_header_is_canonical(header: bytes) -> None:
    """A header that two readers could read in two ways is neither sealed nor verified."""
    with pytest.raises(Malformed):
        seal_grant(header, "m", PAYLOAD, runner=RUNNER.hpke_key.public(), device=GRANTOR)
    with pytest.raises(Malformed):
        verify_grant(header, SealedGrant(b"", "", b""), device=GRANTOR.public())


def test_text_without_bytes_is_refused() -> None:
    """Text that has no UTF-8 form raises one of our errors, wherever it is bound."""
    lone = "\ud800"
    calls: list[Callable[[], object]] = [
        lambda: derive_mission_data_key(bytes(32), lone, b"{}"),
        lambda: mission_data_key_v1(bytes(32), lone, [], []),
        lambda: mission_data_key_v1(bytes(32), "m", [lone], []),
        lambda: record_key(bytes(32), lone, "r"),
        lambda: Binding("s", "t", "r", lone, "a", {}).associated_data(),
        lambda: Binding("s", "t", "r", "p", "a", {"kind": lone}).associated_data(),
        lambda: SigningKey(bytes(32)).sign(lone),
        lambda: unb64(lone),
        lambda: parse_envelope(lone),
        lambda: wrap_public_from_pem(lone),
    ]
    for call in calls:
        with pytest.raises((CryptoFailed, Invalid)):
            call()


# -------------------------------------------------------------------- hygiene


def test_keys_are_not_shown() -> None:
    """No key of ours prints its bytes, so that a traceback or a log cannot."""
    secret = bytes(range(32))
    signing, record = SigningKey(secret), RecordKey(secret)
    shown = repr(
        (signing, record, record.aead, RUNNER, PrivateIdentity("a", RUNNER.hpke_key, signing))
    )
    for raw in (secret, RUNNER.hpke_key.to_bytes(), RUNNER.rsa_key.to_bytes()):
        assert raw.hex() not in shown
        assert repr(raw)[2:-1] not in shown
    assert shown.count("…") >= 6


def test_errors_have_codes() -> None:
    """Each failure of crypto has a stable code of its own under CryptoFailed."""
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    assert len(classes) >= 7
    assert all(issubclass(one, CryptoFailed) for one in classes)
    assert len({one.code for one in classes}) == len(classes)


@given(key=st.binary(min_size=1, max_size=64), info=st.binary(max_size=200))
def test_a_deriver_derives_as_hkdf_does(key: bytes, info: bytes) -> None:
    """Keys that were derived one after the other are those that vectors and other code derive."""
    deriver = Deriver(key)
    assert deriver.derive(info) == deriver.derive(info) == hkdf(key, info=info)
    assert deriver.derive(info + b"x") == hkdf(key, info=info + b"x")
    assert key.hex() not in repr(deriver)


@given(parent=st.binary(min_size=32, max_size=32), table=st.text(), records=st.lists(st.text()))
def test_record_keys_are_the_record_keys(parent: bytes, table: str, records: list[str]) -> None:
    """A list's keys, derived together, are those of its records."""
    found = RecordKeys(parent)
    for record in records:
        assert found.of(table, record) == record_key(parent, table, record)
    with pytest.raises(Malformed):
        RecordKeys(parent[:31])


ACTORS = st.sampled_from(
    [
        {"kind": "user", "principalId": "a"},
        {"principalId": "a", "kind": "user"},
        {"kind": "user", "principalId": "b"},
    ]
)


@given(
    written=st.lists(
        st.tuples(st.sampled_from("pq"), st.sampled_from(["1", "2"]), ACTORS), max_size=8
    )
)
def test_a_record_binds_each_field_alone(
    written: list[tuple[str, str, dict[str, Any]]],
) -> None:
    """What the fields of a record share is encoded once, and each is bound as if it were alone."""
    place = RecordBinding("space", "table", "record")
    for path, at, actor in written:
        alone = length_prefixed("space", "table", "record", path, at, canonical_json(actor))
        assert place.associated_data(path, at, actor_bytes(actor)) == alone
        assert Binding("space", "table", "record", path, at, actor).associated_data() == alone


@pytest.mark.parametrize(
    "head",
    [
        "enc:2:s1:AAAAAAAAAAAAAAA=.",
        "enc:2:s1:AAAAAAAAAAAAAA==.",
        "enc:2:s1:AAAAAAAAAAAA.",
        "enc:2:s1:AAAAAAAAAAAAAAAAAAAA.",
        "enc:2:s1:AAAAAAAAAAAA-AAA.",
        "enc:2:s1:AAAAAAAAAAAAAAAA",
        "enc:2:s1AAAAAAAAAAAAAAAA.",
        "enc:2:s01:AAAAAAAAAAAAAAAA.",
        "enc:2:s0:AAAAAAAAAAAAAAAA.",
        "enc:2:s1234567890:AAAAAAAAAAAAAAAA.",
        "enc:2:s\u0661:AAAAAAAAAAAAAAAA.",
        "enc:2:x1:AAAAAAAAAAAAAAAA.",
        " enc:2:s1:AAAAAAAAAAAAAAAA.",
        "enc:2:s1:.AAAAAAAAAAAAAAAA.",
    ],
)
def test_a_head_has_one_form(head: str) -> None:
    """An envelope whose head is not to the letter is none, whatever follows."""
    sealed = b64(bytes(48))
    assert parse_envelope(f"enc:2:s1:AAAAAAAAAAAAAAAA.{sealed}").iv == bytes(12)
    assert not is_envelope(head + sealed)


@pytest.mark.parametrize(
    "text", ["AAAA====", "AAA=AAAA", "AB==", "AAB=", "AA=", "A", "AA==\n", "ä"]
)
def test_base64_has_one_spelling(text: str) -> None:
    """Spare padding, spare bits, line ends and other alphabets are refused."""
    with pytest.raises(Malformed):
        unb64(text)


@pytest.mark.parametrize(
    "text",
    [
        "1 2",
        "",
        " ",
        "\ufeff1",
        "1\u00a0",
        "NaN",
        '{"a":1,"a":1}',
        "[1",
        '"a" "b"',
        '"a',
        '"a\x01"',
        '"a"\u00a0',
    ],
)
def test_sealed_json_is_read_strictly(text: str) -> None:
    """Only JSON with white space of JSON around it is what somebody sealed."""
    assert parse_json(b" 1\t\n\r  ") == 1
    with pytest.raises(Malformed):
        parse_json(text.encode())


@given(st.text(st.characters()))
@example("\ud800 and \udfff")
def test_sealed_text_is_read_as_it_was_written(text: str) -> None:
    """Text that JSON can hold is read, half a pair of a character too, which older data may have."""
    for written in (json.dumps(text), json.dumps(text) + "   "):
        assert parse_json(written.encode()) == text
