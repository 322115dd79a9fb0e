"""Grants: exactly what was shown is granted, and nothing that the hub made of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from mana.crypto.runners import RunnerPrivateKey
from mana.device.grants import ConsentStale, HeaderRefused, InputGone, NothingToGrant
from mana.device.hub_client import HubClient
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.errors import Invalid
from mana.domain.grants import GrantHeader
from mana.domain.missions import InputRef
from mana.protocol.messages import GrantInfo, RunnerInfo
from mana.testing.postgres import Database
from tests.device.household import Household, household, operations, planned_mission

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
DAY_MS = 24 * 60 * 60 * 1_000


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


def later(moment: str, by_ms: int) -> str:
    return iso_ms(parse_iso_ms(moment) + by_ms)


FORGERIES: dict[str, Any] = {
    "another account": lambda h: replace(h, account_id="00000000-0000-4000-8000-000000000009"),
    "another space": lambda h: replace(h, space_id="0" * 64),
    "another mission": lambda h: replace(h, mission_id="other"),
    "another agent": lambda h: replace(h, agent_id="other"),
    "one record more": lambda h: replace(h, record_ids=tuple(sorted((*h.record_ids, "notes:x")))),
    "one record less": lambda h: replace(h, record_ids=h.record_ids[:-1]),
    "another table": lambda h: replace(h, tables=("notes",)),
    "another endpoint": lambda h: replace(h, endpoints=("https://elsewhere.example",)),
    "one endpoint more": lambda h: replace(h, endpoints=(*h.endpoints, "zzz")),
    "another runner": lambda h: replace(h, runner_key_id="0" * 64),
    "another suite": lambda h: replace(h, suite="rsa-oaep-2048-sha256"),
    "a longer life": lambda h: replace(h, expires_at=later(h.expires_at, 1)),
    "a later start": lambda h: replace(
        h, issued_at=later(h.issued_at, DAY_MS), expires_at=later(h.expires_at, DAY_MS)
    ),
}


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_header_that_is_not_what_was_asked_grants_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch, forgery: str
) -> None:
    """A hub that answers with any other scope, life or runner gets no key."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    asked = HubClient.request_grant

    async def forged(self: HubClient, request: Any) -> GrantHeader:
        header: GrantHeader = FORGERIES[forgery](await asked(self, request))
        return header

    monkeypatch.setattr(HubClient, "request_grant", forged)
    with pytest.raises(HeaderRefused):
        await ada.grant(mission)
    assert not any(path.endswith("/complete") for _, path, _ in home.places[0].wire.seen)
    assert await ada.grants() == []


async def test_grant_is_what_the_consent_showed(home: Household) -> None:
    """An input, agent or life beyond the consent makes the grant stop and ask again."""
    ada = await home.person()
    mission, notes, _ = await planned_mission(ada)
    await ada.consent(mission, days=7)
    with pytest.raises(ConsentStale):
        await ada.grant(mission, days=14)
    extra = await ada.create("notes", {"title": "New", "content": "text"})
    view = await ada.mission(mission)
    await ada.edit_mission(mission, inputs=[*view.inputs, InputRef("notes", "notes", extra)])
    with pytest.raises(ConsentStale):
        await ada.grant(mission, days=7)
    consent = await ada.consent(mission, days=7)
    assert len(consent.records) == 5
    assert (await ada.grant(mission, days=3)).state == "active"
    assert notes[0] in str((await ada.mission(mission)).inputs)


async def test_runner_that_changed_after_the_consent_gets_nothing(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key that a grant is wrapped for is the one whose fingerprint was shown."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.consent(mission)
    asked = HubClient.runner

    async def renamed(self: HubClient) -> RunnerInfo:
        info = await asked(self)
        return RunnerInfo(
            key_id="0" * 64,
            fingerprint=info.fingerprint,
            public_key=info.public_key,
            models=info.models,
        )

    monkeypatch.setattr(HubClient, "runner", renamed)
    with pytest.raises(HeaderRefused):
        await ada.grant(mission)


async def test_runner_swapped_by_the_hub_is_said_to_be_another(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which runners were granted to is this person's memory, not the hub's list of grants."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    await ada.grant(mission)
    asked = HubClient.runner
    other = RunnerPrivateKey.generate().public()

    async def swapped(self: HubClient) -> RunnerInfo:
        info = await asked(self)
        return RunnerInfo(
            key_id=other.key_id(),
            fingerprint=other.fingerprint(),
            public_key=other.to_pem(),
            models=info.models,
        )

    async def nothing(self: HubClient) -> list[GrantInfo]:
        return []

    monkeypatch.setattr(HubClient, "runner", swapped)
    monkeypatch.setattr(HubClient, "grants", nothing)
    operations(ada).grants._news.moved()
    with pytest.raises(ConsentStale):
        await ada.grant(mission)
    assert "earlier grants" in " ".join((await ada.consent(mission)).lines)


async def test_consent_says_it_in_plain_words(home: Household) -> None:
    """The consent names the records, the runner, the model, the life, the log and the way out."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    consent = await ada.consent(mission, days=1)
    text = " ".join(consent.lines)
    for words in (
        "2 notes and 2 tasks",
        "“Offer”",
        "Mira",
        consent.runner_fingerprint,
        "rules",
        "after 1 day",
        "Data access",
        "Revoke",
        "standard mode",
    ):
        assert words in text
    assert "earlier grants" not in text
    with pytest.raises(Invalid):
        await ada.consent(mission, days=31)


async def test_nothing_or_something_gone_is_not_granted(home: Household) -> None:
    """A mission without inputs, or with a deleted one, is not granted."""
    ada = await home.person()
    mission, notes, _ = await planned_mission(ada)
    await ada.delete("notes", notes[0])
    with pytest.raises(InputGone):
        await ada.grant(mission)
    await ada.edit_mission(mission, inputs=[])
    with pytest.raises(NothingToGrant):
        await ada.consent(mission)


async def test_added_input_makes_a_grant_stale_and_revoking_ends_it(home: Household) -> None:
    """A grant that no longer fits its mission says so; a revoked one is not the mission's."""
    ada = await home.person()
    mission, _, _ = await planned_mission(ada)
    grant = await ada.grant(mission)
    extra = await ada.create("notes", {"title": "New", "content": "text"})
    view = await ada.mission(mission)
    assert view.grant is not None
    assert view.grant.state == "active"
    await ada.edit_mission(mission, inputs=[*view.inputs, InputRef("notes", "notes", extra)])
    (stale,) = await ada.grants()
    assert (stale.state, "added since" in stale.stale_reason) == ("stale", True)
    again = await ada.grant(mission)
    states = {one.grant_id: one.state for one in await ada.grants()}
    assert states == {grant.grant_id: "replaced", again.grant_id: "active"}
    record = await operations(ada).opened.mission_view(mission)
    assert record.text("grantId") == again.grant_id
    await ada.delete_mission(mission)
    assert {one.state for one in await ada.grants()} == {"replaced", "revoked"}
