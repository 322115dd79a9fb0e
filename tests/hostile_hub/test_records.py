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
    STATE,
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


@pytest.fixture(autouse=True)
async def honest(written: Written) -> AsyncIterator[None]:
    """Whatever a case had the hub say, the next one begins with the truth."""
    yield
    written.scene.mouth.honest()


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


# What a device was told in vain, and says nothing of


async def test_a_value_can_be_cleared_and_a_record_deleted(written: Written) -> None:
    """What stays possible: what is not sealed says nothing of who wrote it; it can be restored."""
    scene = written.scene
    one = await written.away.create("notes", {"title": "Kept", "content": "Words"})
    for _ in range(2):
        await scene.away.sync_now()
        await scene.ada.sync_now()

    def lie(written: Written, page: Body) -> None:
        change = fields(page, one)
        change["content"]["value"] = None
        change["deletedAt"] = {"value": change["content"]["at"][:24], "at": change["content"]["at"]}

    await written.away.edit("notes", one, {"title": "Kept on", "content": "More words"})
    await scene.away.sync_now()
    tell(written, lie, one)
    assert await code_of(scene.ada.sync_now()) == ""
    scene.mouth.honest()
    note = await written.ada.get("notes", one)
    assert (note.deleted, note.values.get("content")) == (True, None)
    await written.ada.restore("notes", one)
    await scene.ada.sync_now()
    await scene.away.sync_now()
    kept = await written.away.get("notes", one)
    assert (kept.deleted, kept.values["content"]) == (False, "More words")


async def test_a_change_can_be_withheld_until_the_space_is_read_anew(written: Written) -> None:
    """What stays possible: a row that is left out is missed by nobody, and comes with rereading."""
    scene = written.scene
    await written.write()

    def lie(page: Body) -> Body:
        page["changes"] = [one for one in page["changes"] if one["change"]["id"] != written.other]
        return page

    scene.mouth.lie(CHANGES, lie)
    assert await code_of(scene.ada.sync_now()) == ""
    assert scene.mouth.told
    scene.mouth.honest()
    await scene.ada.sync_now()
    honest = await written.away.get("notes", written.other)
    assert (await written.ada.get("notes", written.other)).values != honest.values
    await written.ada.reread()
    assert (await written.ada.get("notes", written.other)).values == honest.values


# What decides


def of_mission(change: Callable[[Written, Body], object]) -> Lie:
    return lambda written, page: change(written, logged(page, written.mission)["change"])


def another_title(written: Written, change: Body) -> None:
    (seen, *_) = [
        fields(body, written.mission)["title"]["value"]
        for _, body in written.scene.mouth.answers
        if "changes" in body and has(body, written.mission)
    ]
    change["fields"]["title"]["value"] = seen


def by_bobs_device(written: Written, change: Body) -> None:
    change["signature"]["signer"] = book_of(written.scene.bob).device_id


def by_another_device(written: Written, change: Body) -> None:
    change["signature"]["signer"] = "00000000-0000-4000-8000-000000000001"


def by_nobody(written: Written, change: Body) -> None:
    del change["signature"]


def with_a_signature_of_then(written: Written, change: Body) -> None:
    (seen, *_) = [
        logged(body, written.mission)["change"]["signature"]
        for _, body in written.scene.mouth.answers
        if "changes" in body and has(body, written.mission)
    ]
    change["signature"] = seen


def half(written: Written, change: Body) -> None:
    del change["fields"]["objective"]


def paused(written: Written, change: Body) -> None:
    at = change["fields"]["title"]["at"]
    change["fields"]["state"] = {"value": "paused", "at": at}


MISSIONS: Final[dict[str, Lie]] = {
    "a title of another time": of_mission(another_title),
    "signed by another account's device": of_mission(by_bobs_device),
    "signed by a device that nobody certified": of_mission(by_another_device),
    "signed by nobody": of_mission(by_nobody),
    "with a signature that was made for another change": of_mission(with_a_signature_of_then),
    "of which a part is withheld": of_mission(half),
    "with a state of the hub's own": of_mission(paused),
}


@pytest.mark.parametrize("name", MISSIONS)
async def test_a_mission_of_the_hubs_is_not_obeyed(written: Written, name: str) -> None:
    """A mission of which something is not signed by a member's device is shown, and not obeyed."""
    scene = written.scene
    place = book_of(scene.ada)
    await scene.away.edit_mission(
        written.mission, title=f"Other {name}", objective=f"Objective {name}", state="active"
    )
    await scene.away.sync_now()
    tell(written, MISSIONS[name], written.mission)
    assert await code_of(scene.ada.sync_now()) == ""
    assert scene.mouth.told
    assert not await place.is_verified("aiMissions", written.mission)
    scene.mouth.honest()
    for state in ("paused", "active"):
        await scene.away.edit_mission(
            written.mission, title=f"{state} {name}", objective=f"{state} {name}", state=state
        )
    await scene.away.sync_now()
    await scene.ada.sync_now()
    assert await place.is_verified("aiMissions", written.mission)


# What a device that is new is shown


def record(body: Body, name: str) -> Body:
    return next(one for one in body["records"] if one["id"] == name)


def state_swapped(written: Written, body: Body) -> None:
    one = record(body, written.note)["fields"]
    one["title"]["value"], one["content"]["value"] = one["content"]["value"], one["title"]["value"]


def state_for_all(written: Written, body: Body) -> None:
    record(body, written.secret)["visibility"] = "space"


def state_of_bob(written: Written, body: Body) -> None:
    record(body, written.secret)["authorId"] = written.scene.bob.account_id


def state_no_head(written: Written, body: Body) -> None:
    body["head"] = -1


def state_of_nobody(written: Written, body: Body) -> None:
    record(body, written.note)["fields"]["title"]["changeId"] = ""


STATES: Final[dict[str, tuple[Lie, str]]] = {
    "ciphertexts swapped": (state_swapped, ""),
    "a private record shown as everybody's": (state_for_all, "HUB_DISTRUSTED"),
    "a private record of somebody else": (state_of_bob, "HUB_DISTRUSTED"),
    "no head": (state_no_head, "HUB_DISTRUSTED"),
    "a value that no change wrote": (state_of_nobody, "HUB_DISTRUSTED"),
}


@pytest.mark.parametrize("name", STATES)
async def test_a_new_device_is_shown_no_other_record(written: Written, name: str) -> None:
    """The state that a new device reads first is looked at as closely as the log."""
    scene = written.scene
    lie, code = STATES[name]
    place, mouth = scene.newcomer()

    def change(body: Body) -> Body:
        if any(one["id"] == written.note for one in body["records"]):
            lie(written, body)
        return body

    mouth.lie(STATE, change)
    found, device = await scene.signs_in(place)
    assert (found, bool(mouth.told)) == (code, True)
    assert device is not None
    here = device.in_space(scene.team)
    if code:
        assert (await device.status()).sync.troubles == {scene.team: code}
        assert await here.list("notes") == []
        mouth.honest()
        await device.sync_now()
        await scene.ada.sync_now()
        assert await picture(device) == await picture(scene.ada)
    else:
        note = await here.get("notes", written.note)
        assert (note.values, note.sealed_fields) == ({}, ("content", "title"))


# What the hub says of what is sent


def other_ids(body: Body) -> None:
    for one in body["results"]:
        one["changeId"] = "00000000-0000-4000-8000-000000000002"


def fewer(body: Body) -> None:
    body["results"].pop()


def nowhere(body: Body) -> None:
    for one in body["results"]:
        one.pop("seq", None)


def another_word(body: Body) -> None:
    for one in body["results"]:
        one["status"] = "perhaps"


def no_hub_time(body: Body) -> None:
    body["hubTime"] = ""


PUSHES: Final[dict[str, Callable[[Body], None]]] = {
    "ids of others": other_ids,
    "not all of them": fewer,
    "at no place": nowhere,
    "no known word": another_word,
    "no time": no_hub_time,
}


@pytest.mark.parametrize("name", PUSHES)
async def test_what_was_sent_waits_until_it_is_answered(written: Written, name: str) -> None:
    """An answer that does not fit what was sent settles nothing; nothing is lost, or sent twice."""
    scene = written.scene
    await scene.ada.sync_now()
    await written.ada.edit("notes", written.note, {"title": f"Sent {name}"})

    def change(body: Body) -> Body:
        if body["results"]:
            PUSHES[name](body)
        return body

    scene.mouth.lie(CHANGES, change, method="POST")
    assert await code_of(scene.ada.sync_now()) == "HUB_DISTRUSTED"
    status = (await scene.ada.status()).sync
    assert (status.waiting, status.troubles) == (1, {scene.team: "HUB_DISTRUSTED"})
    scene.mouth.honest()
    await scene.ada.sync_now()
    assert (await scene.ada.status()).sync.waiting == 0
    await scene.away.sync_now()
    assert await picture(scene.ada) == await picture(scene.away)


@pytest.mark.parametrize("word", ["accepted", "duplicate"])
async def test_what_the_hub_only_claims_to_have_goes_again(written: Written, word: str) -> None:
    """A hub that says it took a change, or had it from another, and drops it, is sent it again."""
    scene = written.scene
    await scene.ada.sync_now()
    path = f"/api/v1/spaces/{scene.team}/changes"
    dropped: list[Body] = []

    def swallow(body: Body) -> Body:
        if dropped:
            return body
        dropped.extend(body["changes"])
        return {**body, "changes": []}

    def claim(body: Body) -> Body:
        if body["results"]:
            return body
        results = [
            {"changeId": one["changeId"], "status": word, "seq": max(1, body["cursor"])}
            for one in dropped
        ]
        return {**body, "results": results}

    await written.ada.edit("notes", written.note, {"title": f"Claimed {word}"})
    scene.mouth.pass_on(path, swallow)
    scene.mouth.lie(path, claim, method="POST")
    await scene.ada.sync_now()
    assert dropped
    scene.mouth.honest()
    for _ in range(2):
        await scene.ada.sync_now()
    await scene.away.sync_now()
    assert (await written.away.get("notes", written.note)).values["title"] == f"Claimed {word}"


async def test_a_hub_that_refuses_every_stamp_is_not_followed(written: Written) -> None:
    """A device does not stamp again and again for a hub that is never content."""
    scene = written.scene
    await scene.ada.sync_now()
    await written.ada.edit("notes", written.note, {"title": "In time"})
    path = f"/api/v1/spaces/{scene.team}/changes"
    asked: list[Body] = []

    def swallow(body: Body) -> Body:
        asked.append(body["changes"])
        return {**body, "changes": []}

    def refuse(body: Body) -> Body:
        results = [
            {"changeId": one["changeId"], "status": "refused", "code": "clock-ahead"}
            for one in asked[-1]
        ]
        return {**body, "results": results}

    scene.mouth.pass_on(path, swallow)
    scene.mouth.lie(path, refuse, method="POST")
    assert await code_of(scene.ada.sync_now()) == "HUB_DISTRUSTED"
    assert len(asked) < 10
    scene.mouth.honest()
    await scene.ada.sync_now()
    await scene.away.sync_now()
    assert (await written.away.get("notes", written.note)).values["title"] == "In time"


async def test_a_log_that_was_put_back_is_noticed(written: Written) -> None:
    """A hub whose log ends before what a device saw gets nothing from it: HUB_BEHIND."""
    scene = written.scene
    tables = ("mana.sync_changes", "mana.records", "mana.space_heads")
    async with scene.put_back(*tables) as rows:
        await written.write()
        await scene.ada.sync_now()
        before = await shown_of(written)
        newest = await rows.swap()
        assert await code_of(scene.ada.sync_now()) == "HUB_BEHIND"
        assert (await scene.ada.status()).sync.troubles[scene.team] == "HUB_BEHIND"
        assert await shown_of(written) == before
        await rows.swap(newest)
    await told_the_truth(written)


async def test_changes_shown_again_change_nothing(written: Written) -> None:
    """All that was ever said, once more and later in the log, is what it was."""
    scene = written.scene
    await written.write()
    await scene.ada.sync_now()
    before = await shown_of(written)
    pages = [body for _, body in scene.mouth.answers if "changes" in body]
    told = [one for page in pages if has(page, written.note) for one in page["changes"]]

    def lie(page: Body) -> Body:
        cursor = page["cursor"]
        again = [{**one, "seq": cursor + n} for n, one in enumerate(copy.deepcopy(told), 1)]
        return {**page, "changes": page["changes"] + again, "cursor": cursor + len(again)}

    scene.mouth.lie(f"/api/v1/spaces/{scene.team}/changes", lie)
    assert await code_of(scene.ada.sync_now()) == ""
    assert scene.mouth.told
    assert await shown_of(written) == before
    scene.mouth.honest()
    # The places that the hub made up are missed now; the person has the space read anew.
    assert await code_of(scene.ada.sync_now()) == "HUB_BEHIND"
    await written.ada.reread()
    await told_the_truth(written)
