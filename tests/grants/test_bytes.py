"""Every byte of a grant counts: any other one is refused, with the reason that is documented."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from mana.crypto.envelope import parse_json
from mana.crypto.errors import Malformed, SignatureRejected, WrapRejected
from mana.crypto.grants import (
    SealedGrant,
    countersign_grant,
    open_grant,
    seal_grant,
    verify_grant,
)
from mana.crypto.hpke import SUITE, HpkePrivateKey
from mana.crypto.signatures import SigningKey
from mana.domain.encoding import sha256
from mana.domain.errors import CryptoFailed, Invalid
from mana.domain.grants import GrantCaps, GrantHeader, header_from_wire

HEADER = GrantHeader(
    grant_id="00000000-0000-4000-8000-000000000001",
    account_id="00000000-0000-4000-8000-000000000002",
    space_id="5" * 64,
    mission_id="mission-1",
    agent_id="agent-1",
    tables=("notes",),
    record_ids=("notes:note-1",),
    endpoints=("rules:offline",),
    issued_at="2026-11-21T05:00:00.000Z",
    expires_at="2026-11-28T05:00:00.000Z",
    suite=SUITE,
    runner_key_id="6" * 64,
    caps=GrantCaps(5_000, None, 0, 9),
).canonical()
DEVICE, HUB, RUNNER = SigningKey.generate(), SigningKey.generate(), HpkePrivateKey.generate()
GRANT = seal_grant(HEADER, "mission-1", {"records": {}}, runner=RUNNER.public(), device=DEVICE)
WORD = countersign_grant(HUB, HEADER, GRANT)


def test_caps_stand_in_the_header_or_not_at_all() -> None:
    """A header is read with exactly its four caps or without any; another form is none."""
    wire = parse_json(HEADER)
    assert isinstance(wire, dict)
    assert header_from_wire(wire).canonical() == HEADER
    bare = {name: value for name, value in wire.items() if name != "caps"}
    assert header_from_wire(bare).caps is None
    assert header_from_wire(bare).to_wire() == bare
    four = GrantCaps().to_wire()
    for caps in (
        None,
        {},
        {**four, "more": 1},
        {**four, "agentCost": -1},
        {**four, "agentCost": True},
    ):
        with pytest.raises(Invalid):
            header_from_wire({**wire, "caps": caps})


def flips(raw: bytes) -> Iterator[bytes]:
    """Return these bytes with each one changed in turn."""
    for at, byte in enumerate(raw):
        yield raw[:at] + bytes([byte ^ 1]) + raw[at + 1 :]


def refusal(header: bytes, grant: SealedGrant, word: bytes) -> type[CryptoFailed]:
    """Return why a grant does not open."""
    with pytest.raises(CryptoFailed) as caught:
        open_grant(
            header,
            "mission-1",
            grant,
            word,
            runner=RUNNER,
            device=DEVICE.public(),
            hub=HUB.public(),
        )
    return type(caught.value)


def signed_anew(header: bytes, grant: SealedGrant) -> tuple[SealedGrant, bytes]:
    """Sign these parts, as a device and a hub that work together would."""
    made = dataclasses.replace(
        grant, signature=DEVICE.sign("mana-grant:v2", header, *hashes(grant))
    )
    return made, countersign_grant(HUB, header, made)


def hashes(grant: SealedGrant) -> tuple[bytes, bytes]:
    return sha256(grant.wrapped_key), sha256(grant.sealed_keys.encode())


def test_every_byte_of_the_header() -> None:
    """A header with any other byte is not the signed one, or no canonical object at all."""
    found = {refusal(changed, GRANT, WORD) for changed in flips(HEADER)}
    assert found == {SignatureRejected, Malformed}


def test_every_byte_of_the_material() -> None:
    """Wrapped key and sealed keys with any other byte are not what the device signed."""
    for changed in flips(GRANT.wrapped_key):
        other = dataclasses.replace(GRANT, wrapped_key=changed)
        assert refusal(HEADER, other, WORD) is SignatureRejected
    for changed in flips(GRANT.sealed_keys.encode()):
        other = dataclasses.replace(GRANT, sealed_keys=changed.decode())
        assert refusal(HEADER, other, WORD) is SignatureRejected


def test_every_byte_of_the_signatures() -> None:
    """Neither signature holds with another byte, the device's without the hub's neither."""
    for changed in flips(GRANT.signature):
        other = dataclasses.replace(GRANT, signature=changed)
        assert refusal(HEADER, other, WORD) is SignatureRejected
        with pytest.raises(SignatureRejected):
            verify_grant(HEADER, other, device=DEVICE.public())
    for changed in flips(WORD):
        assert refusal(HEADER, GRANT, changed) is SignatureRejected


def test_every_byte_below_the_signatures() -> None:
    """Where both sign what does not fit, the key is not this header's, or the form is broken."""
    for changed in flips(GRANT.wrapped_key):
        made, word = signed_anew(HEADER, dataclasses.replace(GRANT, wrapped_key=changed))
        assert refusal(HEADER, made, word) is WrapRejected
    for changed in flips(GRANT.sealed_keys.encode()):
        made, word = signed_anew(HEADER, dataclasses.replace(GRANT, sealed_keys=changed.decode()))
        assert refusal(HEADER, made, word) in (WrapRejected, Malformed)
    for changed in flips(HEADER):
        try:
            made, word = signed_anew(changed, GRANT)
        except CryptoFailed:
            continue
        assert refusal(changed, made, word) in (WrapRejected, Malformed)


def test_the_untouched_one_opens() -> None:
    """The grant that all these are made of opens, so that they are refused for their byte."""
    opened = open_grant(
        HEADER, "mission-1", GRANT, WORD, runner=RUNNER, device=DEVICE.public(), hub=HUB.public()
    )
    assert opened == {"records": {}}
