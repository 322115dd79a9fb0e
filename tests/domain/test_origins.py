"""What a grant may name as a place for text is one plain name, the same for hub, runner and device."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.errors import Invalid
from mana.domain.grants import header_from_wire
from mana.domain.origins import is_origin, require_endpoint
from mana.models.addresses import endpoint

HEADER: dict[str, Any] = {
    "version": "v2",
    "grantId": "11111111-1111-4111-8111-111111111111",
    "accountId": "22222222-2222-4222-8222-222222222222",
    "spaceId": "a" * 64,
    "missionId": "mission",
    "agentId": "agent",
    "tables": ["notes"],
    "recordIds": ["notes:one"],
    "endpoints": ["rules:offline"],
    "issuedAt": "2026-11-21T05:23:00.123Z",
    "expiresAt": "2026-11-28T05:23:00.123Z",
    "suite": "hpke-mlkem768-x25519",
    "runnerKeyId": "cd" * 32,
}
_BASES = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["http://", "https://", "HTTPS://", "ftp://", ""]),
        st.text(st.sampled_from("ab0-_.%:[]@/?#ä\u00ad \t\r\n\x00\u2028"), max_size=12),
        st.sampled_from(["", ":443", ":80", ":8443", ":0", ":99999", "/", "/v1"]),
    ),
)


@pytest.mark.parametrize(
    "text",
    [
        "rules",
        "rules:offline",
        "https://models.example",
        "http://127.0.0.1:11434",
        "https://[2606:4700::1]:8443",
        "http://my_box.lan:443",
    ],
)
def test_a_header_names_origins_and_words(text: str) -> None:
    """Every place that a runner can have has a name that a grant may bear."""
    assert header_from_wire({**HEADER, "endpoints": [text]}).endpoints == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "rules offline",
        "https://models.example https://eve.example",
        "https://models.example\n",
        "https://models.example\x00",
        "https://models.example\u2028",
        "https://models.example\u00a0",
        "https://models.example/v1",
        "https://models.example/",
        "https://models.example?x",
        "https://models.example#x",
        "https://ada:secret@models.example",
        "https://Models.example",
        "https://models.example:443",
        "http://models.example:80",
        "https://models.example:99999",
        "https://models.example.",
        "https://.models.example",
        "https://" + "a" * 64 + ".example",
        "https://" + ".".join(["a" * 60] * 5),
        "https://[::1",
        "https://[1::2::3]",
        "https://m\u00f6dels.example",
        "https:models.example",
        "https://",
        "ftp://models.example",
        "rules:off/line",
        "x" * 500,
    ],
)
def test_a_header_names_nothing_that_reads_as_another(text: str) -> None:
    """What has spaces, control characters, a path, or a second way to write it, is no name."""
    with pytest.raises(Invalid, match="an endpoint in a grant is an origin"):
        header_from_wire({**HEADER, "endpoints": [text]})


@given(_BASES)
def test_an_address_has_a_name_that_a_header_may_bear(base: str) -> None:
    """Whatever address a model may be set up with, grants can name where it is."""
    try:
        found = endpoint(base)
    except Invalid:
        return
    assert is_origin(found.origin)
    assert require_endpoint(found.origin) == found.origin


@given(_BASES | st.text(max_size=20))
def test_a_name_is_one_printable_word(text: str) -> None:
    """Names stand in audit lines with spaces between: none holds one, or hides anything."""
    try:
        require_endpoint(text)
    except Invalid:
        return
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
