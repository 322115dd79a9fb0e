"""Invitations: only the whole link opens, and a proof is of one person, space and invitation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.crypto.errors import Malformed
from mana.crypto.invitations import (
    InvitationLink,
    InvitationRejected,
    acceptance_mac,
    invitation_token,
    new_secret,
    parse_link,
    parse_secret,
    secret_text,
    token_hash,
    verify_acceptance,
)
from mana.crypto.primitives import b64

SPACE = "ab" * 32
HEAD = "cd" * 32
INVITATION = "018f3b9e-0000-4000-8000-0000000000bb"
SECRET = bytes(range(32))
WHO = {
    "account_id": "5f0c2c56-7e1c-4a52-9d0e-0c1f6d1c8a01",
    "signing_key": "c2lnbg==",
    "hpke_key": "aHBrZQ==",
}
LINK = InvitationLink("https://hub.example:3050", SPACE, INVITATION, SECRET, HEAD)


@given(secret=st.binary(min_size=32, max_size=32), hub=st.sampled_from(["http://a", LINK.hub]))
def test_a_link_says_what_was_put_in(secret: bytes, hub: str) -> None:
    """Whatever the secret, the link gives back hub, space, invitation, secret and head."""
    link = InvitationLink(hub, SPACE, INVITATION, secret, HEAD)
    assert parse_link(link.text()) == link
    assert parse_link(f"  {link.text()}\n") == link
    assert parse_secret(secret_text(secret)) == secret


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        LINK.text()[:-1],
        LINK.text() + "a",
        LINK.text() + ".a",
        LINK.text().replace("#1.", "#2."),
        LINK.text().replace("#", "?"),
        LINK.text().replace("/join", "/other"),
        LINK.text().replace("/join", "/join/"),
        LINK.text().replace("https://", "ftp://"),
        LINK.text().replace("https://", "javascript://"),
        LINK.text().replace("hub.example", "me@hub.example"),
        LINK.text().replace("hub.example:3050", "hub.example/?a=b"),
        LINK.text().replace("hub.example:3050", ""),
        LINK.text().replace(SPACE, SPACE.upper()),
        LINK.text().replace(INVITATION, INVITATION.upper()),
        LINK.text().replace(HEAD, HEAD[:-2]),
        LINK.text().replace(secret_text(SECRET), secret_text(SECRET)[:-1]),
        LINK.text().replace(secret_text(SECRET), secret_text(SECRET)[:-1] + "9"),
        LINK.text().replace(secret_text(SECRET), secret_text(SECRET)[:-1] + "="),
        LINK.text().replace(SPACE, "é" * 64),
        "https://" + "a" * 1_000 + LINK.text()[8:],
    ],
)
def test_another_text_is_no_link(text: str) -> None:
    """Part of a link, another spelling of it and another address are refused, not guessed."""
    with pytest.raises(Malformed):
        parse_link(text)


@pytest.mark.parametrize(
    "text",
    ["", "A" * 42, "A" * 44, "+" + "A" * 42, "/" + "A" * 42, "A" * 42 + "B", "é" + "A" * 42],
)
def test_a_secret_has_one_spelling(text: str) -> None:
    """Another alphabet, length or unused bits set are no secret."""
    assert parse_secret("A" * 43) == bytes(32)
    with pytest.raises(Malformed):
        parse_secret(text)


def test_a_link_shows_no_secret() -> None:
    """A log that shows a link's parts shows no secret."""
    assert secret_text(SECRET) not in repr(LINK)
    assert repr(SECRET) not in repr(LINK)


def proof(**changed: Any) -> str:
    return b64(
        acceptance_mac(
            changed.pop("secret", SECRET),
            changed.pop("space", SPACE),
            changed.pop("invitation", INVITATION),
            **{**WHO, **changed},
        )
    )


@pytest.mark.parametrize(
    "other",
    [
        {"secret": bytes(32)},
        {"space": "ef" * 32},
        {"invitation": "018f3b9e-0000-4000-8000-0000000000cc"},
        {"account_id": "5f0c2c56-7e1c-4a52-9d0e-0c1f6d1c8a02"},
        {"signing_key": "b3RoZXI="},
        {"hpke_key": "b3RoZXI="},
        {"signing_key": WHO["hpke_key"], "hpke_key": WHO["signing_key"]},
    ],
)
def test_a_proof_is_of_one_person_and_place(other: dict[str, Any]) -> None:
    """A proof for another secret, space, invitation, account or key lets nobody in."""
    verify_acceptance(SECRET, SPACE, INVITATION, **WHO, proof=proof())
    with pytest.raises(InvitationRejected):
        verify_acceptance(SECRET, SPACE, INVITATION, **WHO, proof=proof(**other))


@pytest.mark.parametrize("bad", ["", "é", proof()[:-1], proof().rstrip("="), proof() + " "])
def test_another_spelling_is_no_proof(bad: str) -> None:
    """What is not exactly the proof is refused like a wrong one."""
    with pytest.raises(InvitationRejected):
        verify_acceptance(SECRET, SPACE, INVITATION, **WHO, proof=bad)


def test_the_hub_s_token_makes_no_proof() -> None:
    """Token, its hash and the proof share nothing: who knows one derives none of the others."""
    token = invitation_token(SECRET, SPACE, INVITATION)
    assert token_hash(token) != token.hex()
    assert b64(token) != proof()
    assert proof(secret=token) != proof()
    assert invitation_token(SECRET, "ef" * 32, INVITATION) != token
    drawn = {new_secret() for _ in range(8)}
    assert len(drawn) == 8
    with pytest.raises(Malformed):
        token_hash(token[:-1])
