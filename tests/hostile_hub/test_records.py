"""A hub that lies about records: what was written, by whom, when, who may see it, and in which order.

Another device of Ada writes honestly; the hub changes what her first device is told of it.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import pytest

from mana.crypto.primitives import b64
from mana.device.desk import Device
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.testing.postgres import Cluster
from tests.hostile_hub.tools import (
    CHANGES,
    Body,
    Scene,
    book_of,
    code_of,
    opened,
    picture,
    planned_mission,
    scene_on,
)

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]


@dataclass
class Written:
    """A scene with what stands in it: notes in the team, a private one, and a mission."""

    scene: Scene
    note: str
    other: str
    secret: str
    bobs: str
    personal: str
    mission: str
    agent: str
    turns: int = 0

    @property
    def ada(self) -> Device:
        """Ada's first device in the team, to which the hub lies."""
        return self.scene.ada.in_space(self.scene.team)

    @property
    def away(self) -> Device:
        """Her other one, which writes."""
        return self.scene.away.in_space(self.scene.team)

    async def write(self) -> None:
        """Have the other device write to every record that Ada's first one holds."""
        self.turns += 1
        for place, one in (
            (self.away, self.note),
            (self.away, self.other),
            (self.away, self.secret),
        ):
            words: Any = {"title": f"Title {self.turns}", "content": f"Content {self.turns} of it"}
            await place.edit("notes", one, words)
        await self.scene.away.edit("notes", self.personal, {"title": f"Own {self.turns}"})
        await self.scene.away.edit_mission(self.mission, title=f"Review {self.turns}")
        await self.scene.away.sync_now()


@pytest.fixture(scope="module")
async def written(postgres: Cluster) -> AsyncIterator[Written]:
    async with scene_on(postgres) as scene:
        ada, bob = scene.ada.in_space(scene.team), scene.bob.in_space(scene.team)
        note = await ada.create("notes", {"title": "Offer", "content": "Ten boxes"})
        other = await ada.create("notes", {"title": "Garden", "content": "More herbs"})
        secret = await ada.create(
            "notes", {"title": "Gift", "content": "A boat"}, visibility="private"
        )
        bobs = await bob.create("notes", {"title": "Mine", "content": "x"}, visibility="private")
        mission, (personal, *_), _ = await planned_mission(scene.ada)
        agent = (await scene.ada.mission(mission)).agent_id
        for one in (scene.ada, scene.bob, scene.away, scene.ada):
            await one.sync_now()
        yield Written(scene, note, other, secret, bobs, personal, mission, agent)


def logged(page: Body, record: str) -> Body:
    """Return the newest change of a record in a page, as it is logged."""
    return [one for one in page["changes"] if one["change"]["id"] == record][-1]


def fields(page: Body, record: str) -> Body:
    return logged(page, record)["change"]["fields"]


def has(page: Body, record: str) -> bool:
    return any(one["change"]["id"] == record for one in page["changes"])


Lie: TypeAlias = Callable[[Written, Body], object]
"""Changes a page of the log in place."""


def spoilt(change: Callable[[Written, str], str]) -> Lie:
    """Return a lie about the envelope of the note's title."""

    def lie(written: Written, page: Body) -> None:
        title = fields(page, written.note)["title"]
        title["value"] = change(written, title["value"])

    return lie


def two_fields(written: Written, page: Body) -> None:
    one = fields(page, written.note)
    one["title"]["value"], one["content"]["value"] = one["content"]["value"], one["title"]["value"]


def two_records(written: Written, page: Body) -> None:
    one, two = fields(page, written.note), fields(page, written.other)
    for name in ("title", "content"):
        one[name]["value"], two[name]["value"] = two[name]["value"], one[name]["value"]


def another_space(written: Written, page: Body) -> None:
    found = [
        one
        for _, body in written.scene.mouth.answers
        if "changes" in body and has(body, written.personal)
        for one in [fields(body, written.personal)["title"]["value"]]
    ]
    fields(page, written.note)["title"]["value"] = found[-1]


def an_older_value(written: Written, page: Body) -> None:
    seen = [
        fields(body, written.note)["title"]["value"]
        for _, body in written.scene.mouth.answers
        if "changes" in body and has(body, written.note)
    ]
    # The newest is the very page.
    fields(page, written.note)["title"]["value"] = seen[-2]


def later(at: str, ms: int = 1) -> str:
    return iso_ms(parse_iso_ms(at[:24]) + ms) + at[24:]


def another_time(written: Written, page: Body) -> None:
    for one in fields(page, written.note).values():
        one["at"] = later(one["at"])


def another_writer(written: Written, page: Body) -> None:
    logged(page, written.note)["change"]["actor"]["principalId"] = written.scene.bob.account_id


CLOSED: Final[dict[str, tuple[Lie, tuple[str, ...]]]] = {
    "ciphertexts of two fields swapped": (two_fields, ("content", "title")),
    "ciphertexts of two records swapped": (two_records, ("content", "title")),
    "a ciphertext of another space": (another_space, ("title",)),
    "an older value under a new time": (an_older_value, ("title",)),
    "another time": (another_time, ("content", "title")),
    "another writer": (another_writer, ("content", "title")),
    "another key version": (
        spoilt(lambda written, value: value.replace("enc:2:s1:", "enc:2:s2:")),
        ("title",),
    ),
    "a truncated value": (spoilt(lambda written, value: value[:-8]), ("title",)),
    "an emptied value": (spoilt(lambda written, value: ""), ("title",)),
    "an envelope without content": (spoilt(lambda written, value: "enc:2:s1:."), ("title",)),
    "words of the hub's own": (spoilt(lambda written, value: "Pay the hub"), ("title",)),
}


def tell(written: Written, lie: Lie, record: str) -> None:
    """Have the hub tell a lie on each page of the log that brings a record."""

    def change(page: Body) -> Body:
        if has(page, record):
            lie(written, page)
        return page

    written.scene.mouth.lie(CHANGES, change)


async def told_the_truth(written: Written) -> None:
    """Require that with the next honest words both of Ada's devices show the same."""
    scene = written.scene
    scene.mouth.honest()
    await written.write()
    assert await code_of(scene.ada.sync_now()) == ""
    await scene.away.sync_now()
    assert await picture(scene.ada) == await picture(scene.away)


@pytest.mark.parametrize("name", CLOSED)
async def test_no_value_becomes_another(written: Written, name: str) -> None:
    """What was sealed for another place, time or hand does not open, and says so where it stands."""
    lie, closed = CLOSED[name]
    await written.write()
    await written.scene.ada.sync_now()
    await written.write()
    tell(written, lie, written.note)
    assert await code_of(written.scene.ada.sync_now()) == ""
    assert written.scene.mouth.told
    note = await written.ada.get("notes", written.note)
    honest = await written.away.get("notes", written.note)
    assert note.sealed_fields == closed
    assert note.values == {one: value for one, value in honest.values.items() if one not in closed}
    # Nothing is made of what is closed: it is not sealed anew, nor given to others.
    flip = written.ada.set_visibility("notes", written.note, "private")
    assert await code_of(flip) == "FIELDS_CLOSED"
    await told_the_truth(written)


def back(written: Written, page: Body) -> None:
    page["changes"].reverse()


def twice(written: Written, page: Body) -> None:
    page["changes"].append(copy.deepcopy(page["changes"][-1]))


def beyond(written: Written, page: Body) -> None:
    page["changes"][-1]["seq"] = page["cursor"] = 2**53


def short_cursor(written: Written, page: Body) -> None:
    page["cursor"] = page["changes"][0]["seq"] - 1


def empty_promise(written: Written, page: Body) -> None:
    page["cursor"] = page["changes"][0]["seq"] - 1
    page["changes"], page["more"] = [], True


def no_time(written: Written, page: Body) -> None:
    page["hubTime"] = "soon"


def far_future(written: Written, page: Body) -> None:
    for one in fields(page, written.note).values():
        one["at"] = "2999" + one["at"][4:]


def for_others(written: Written, page: Body) -> None:
    logged(page, written.secret)["change"]["visibility"] = "space"


def for_nobody(written: Written, page: Body) -> None:
    logged(page, written.note)["change"]["visibility"] = "private"


def as_a_flip(written: Written, page: Body) -> None:
    change = logged(page, written.secret)["change"]
    change["op"], change["visibility"] = "flip", "space"
    for one in change["fields"].values():
        one["value"] = one["value"].replace("enc:2:p1:", "enc:2:s1:")


def a_signed_flip(written: Written, page: Body) -> None:
    as_a_flip(written, page)
    signer = opened(written.scene.bob).identity
    change = logged(page, written.secret)["change"]
    value = b64(signer.signing_key.sign("mana-change:v1", "anything"))
    change["signature"] = {"signer": book_of(written.scene.bob).device_id, "value": value}


def hidden(written: Written, page: Body) -> None:
    page["hidden"] = [{"seq": page["cursor"], "table": "notes", "id": written.note}]
    page["changes"] = [one for one in page["changes"] if one["seq"] < page["cursor"]]


def bobs_secret(written: Written, page: Body) -> None:
    one = copy.deepcopy(logged(page, written.note))
    one["seq"] = page["cursor"] = page["cursor"] + 1
    one["change"].update(
        id=written.bobs, changeId="x", visibility="private", authorId=written.scene.bob.account_id
    )
    for each in one["change"]["fields"].values():
        each["value"] = each["value"].replace("enc:2:s1:", "enc:2:p1:")
    page["changes"].append(one)


def of_another_scope(written: Written, page: Body) -> None:
    logged(page, written.note)["change"]["table"] = "userSettings"


def no_author(written: Written, page: Body) -> None:
    logged(page, written.note)["change"]["authorId"] = "the hub"


def no_actor(written: Written, page: Body) -> None:
    logged(page, written.note)["change"]["actor"] = {"kind": "god", "principalId": "hub"}


def no_fields(written: Written, page: Body) -> None:
    logged(page, written.note)["change"]["fields"] = {}


def no_stamp(written: Written, page: Body) -> None:
    fields(page, written.note)["title"]["at"] = "x" * 66


def not_a_page(written: Written, page: Body) -> None:
    page["changes"] = {"all": page["changes"]}


PAGES: Final[dict[str, Lie]] = {
    "a log that goes backwards": back,
    "a change twice": twice,
    "a place that no log has": beyond,
    "a cursor that is not the page's": short_cursor,
    "more, and nothing": empty_promise,
    "no time": no_time,
    "a stamp of the far future": far_future,
    "a private record shown as everybody's": for_others,
    "a shared record shown as private": for_nobody,
    "a flip that nobody signed": as_a_flip,
    "a flip that somebody else signed": a_signed_flip,
    "an own record hidden": hidden,
    "a record that is private to another": bobs_secret,
    "a record of another scope": of_another_scope,
    "no author": no_author,
    "no actor": no_actor,
    "a change of nothing": no_fields,
    "no stamp": no_stamp,
    "another form": not_a_page,
}


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_that_breaks_a_rule_is_not_taken(written: Written, name: str) -> None:
    """Nothing of it is: not the change at fault, nor the others. The space says HUB_DISTRUSTED."""
    scene = written.scene
    await written.write()
    before = await shown_of(written)
    tell(written, PAGES[name], written.note)
    assert await code_of(scene.ada.sync_now()) == "HUB_DISTRUSTED"
    assert scene.mouth.told
    status = (await scene.ada.status()).sync
    assert (status.trouble, status.troubles) == ("HUB_DISTRUSTED", {scene.team: "HUB_DISTRUSTED"})
    assert await shown_of(written) == before
    await told_the_truth(written)


async def shown_of(written: Written) -> dict[str, Any]:
    """Return what Ada's first device shows of the team."""
    return {
        name: one
        for name, one in (await picture(written.scene.ada)).items()
        if written.scene.team in name
    }


def replayed(written: Written, page: Body) -> None:
    """Every change that was ever told, once more behind this page."""
    seq = page["cursor"]
    seen = [
        one
        for path, body in written.scene.mouth.answers
        if "changes" in body and has(body, written.note)
        for one in body["changes"]
    ]
    for one in copy.deepcopy(seen):
        seq += 1
        page["changes"].append({**one, "seq": seq})
    page["cursor"] = seq


def another_id(written: Written, page: Body) -> None:
    logged(page, written.note)["change"]["changeId"] = "another"


def another_op(written: Written, page: Body) -> None:
    logged(page, written.note)["change"]["op"] = "delete"


def withheld(written: Written, page: Body) -> None:
    page["changes"], page["cursor"], page["more"] = [], page["changes"][0]["seq"] - 1, False


HARMLESS: Final[dict[str, Lie]] = {
    "another id of the change": another_id,
    "another word for what it does": another_op,
    "a page withheld": withheld,
}


@pytest.mark.parametrize("name", HARMLESS)
async def test_what_nobody_decides_by_changes_nothing(written: Written, name: str) -> None:
    """What is not sealed or signed of a change, and what comes later, makes no other record."""
    await written.write()
    tell(written, HARMLESS[name], written.note)
    assert await code_of(written.scene.ada.sync_now()) == ""
    assert written.scene.mouth.told
    written.scene.mouth.honest()
    assert await code_of(written.scene.ada.sync_now()) == ""
    await written.scene.away.sync_now()
    assert await picture(written.scene.ada) == await picture(written.scene.away)
