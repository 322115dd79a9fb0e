"""All work stopped: at once here, everywhere after a sync, and told to the hub until it agrees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest

from mana.crypto.work import REVISION_MAX
from mana.device.desk import Device
from mana.device.known_hub import KEPT_HUB, HubChanged
from mana.device.operations import Operations
from mana.domain.cadences import Cadence
from mana.domain.errors import Invalid
from mana.domain.iterations import ITERATIONS
from mana.domain.settings import SETTINGS, SETTINGS_ID
from mana.protocol.errors import WorkNotSigned, WorkStopped
from mana.protocol.messages import PushAnswer, PushRequest, PushResult, SetWork, WorkState
from mana.protocol.replication import HubDistrusted
from mana.testing.accounts import PASSWORD
from mana.testing.models import ScriptedModel
from mana.testing.postgres import Database, connected
from tests.device.household import Household, household, operations, planned_mission
from tests.device.rig import Handler
from tests.device.test_foreground import HOUR_MS, Hanging, creating

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
HOURLY = Cadence("interval", every_minutes=60)
SETTING = ("PUT", "/api/v1/me/ai-work")
WORK_SAID = ("/api/v1/me/ai-work", "/api/v1/me/missions")
NOTES = {"workHub", "workWord"}


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


async def hub_is_stopped(device: Device) -> bool:
    """Return what the hub says."""
    return (await operations(device).opened.hub.work()).stopped_at is not None


async def test_stop_ends_what_runs_and_lets_nothing_begin(home: Household) -> None:
    """After a stop the run is cut off, nothing is due, nothing starts by hand; the hub has the word."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(ada, runs_on="device", cadence=HOURLY)
    home.clock.ahead_ms += HOUR_MS
    (task,) = await operations(ada).runner.begin_due()
    await hanging.asked.wait()
    state = await ada.stop_work()
    assert state.stopped_ms is not None
    assert state.hub_told
    line = await task
    assert (line.state, line.reason) == ("failed", "stopped")
    assert hanging.cancelled
    assert await hub_is_stopped(ada)
    home.clock.ahead_ms += HOUR_MS
    await operations(ada).runner.work(expire=True)
    with pytest.raises(WorkStopped):
        await ada.run_now(mission)
    with pytest.raises(WorkStopped):
        await operations(ada).runner.run_planned()
    assert len((await ada.mission(mission)).runs) == 1
    assert (await ada.mission(mission)).failures == 0
    again = await ada.start_work()
    assert (again.stopped_ms, again.hub_told) == (None, True)
    assert not await hub_is_stopped(ada)
    begun = await operations(ada).runner.begin_due()
    assert len(begun) == 1
    await ada.stop_mission(mission)


async def test_what_was_due_meanwhile_is_missed(home: Household) -> None:
    """What came due while all was stopped follows the mission's policy for missed moments."""
    ada = await home.person(model=creating())
    mission, _, _ = await planned_mission(ada, runs_on="device", cadence=HOURLY)
    await ada.stop_work()
    home.clock.ahead_ms += 4 * HOUR_MS + HOUR_MS // 2
    await operations(ada).runner.work(expire=False)
    assert (await ada.mission(mission)).runs == ()
    await ada.start_work()
    await operations(ada).runner.run_due()
    states = [run.state for run in (await ada.mission(mission)).runs]
    assert states == ["done", "missed", "missed", "missed"]


async def test_person_still_decides_while_work_is_stopped(home: Household) -> None:
    """Approving and rejecting is the person's own doing, and goes on."""
    ada = await home.person(model=creating("One", "Two"))
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.run_now(mission)
    first, second = await ada.inbox()
    await ada.stop_work()
    assert (await ada.approve(first.step_id)).state == "approved"
    assert (await ada.reject(second.step_id)).state == "rejected"
    assert {"One", "Two"} & {view.text("title") for view in await ada.list("tasks")}


async def test_stop_off_line_holds_here_and_reaches_the_hub_later(home: Household) -> None:
    """Without the hub the stop holds at once; the hub hears of it as soon as it can be reached."""
    ada = await home.person(model=ScriptedModel())
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.sync_now()
    home.places[0].wire.is_cut = True
    state = await ada.stop_work()
    assert (state.stopped_ms is not None, state.hub_told) == (True, False)
    with pytest.raises(WorkStopped):
        await ada.run_now(mission)
    home.places[0].wire.is_cut = False
    assert not await hub_is_stopped(ada)
    await operations(ada).work.tell()
    assert await hub_is_stopped(ada)
    assert (await ada.work_state()).hub_told


async def test_every_device_obeys_after_its_sync(home: Household) -> None:
    """A stop on one device ends the runs of another once it has synced."""
    hanging = Hanging()
    ada = await home.person(model=hanging)
    mission, _, _ = await planned_mission(ada, runs_on="device")
    await ada.sync_now()
    phone = await home.second()
    await phone.sync_now()
    running = asyncio.create_task(ada.run_now(mission))
    await hanging.asked.wait()
    await phone.stop_work()
    await ada.sync_now()
    run = await running
    assert run is not None
    assert (run.state, run.reason) == ("failed", "stopped")
    assert (await ada.work_state()).stopped_ms is not None
    await ada.start_work()
    await phone.sync_now()
    assert (await phone.work_state()).stopped_ms is None


async def test_a_hub_that_says_something_else_is_told_again(home: Household) -> None:
    """Whatever stands at the hub, it has the person's word after the next look, signed anew."""
    ada = await home.person()
    of = operations(ada)
    await ada.set_caps(tokens_per_day_max=5_000)
    await ada.stop_work()
    await change(home, "stopped_at = null, tokens_per_day_max = 6000")
    news(of)
    state = await ada.work_state()
    assert (state.differs, state.tokens_per_day_max) == (True, 5_000)
    await of.work.tell()
    state = await ada.work_state()
    assert (state.differs, state.tokens_per_day_max, state.hub_told) == (False, 5_000, True)
    older = await of.opened.hub.work()
    assert older.signed is not None
    await ada.set_caps(tokens_per_day_max=4_000)
    text = msgspec.json.encode(older.signed.word, order="sorted").decode()
    await change(
        home,
        "word = $1, signature = $2, revision = $3, tokens_per_day_max = 5000",
        text,
        older.signed.signature.value,
        older.revision,
    )
    news(of)
    assert (await ada.work_state()).differs
    await of.work.tell()
    state = await ada.work_state()
    assert (state.differs, state.tokens_per_day_max) == (False, 4_000)
    assert (await of.opened.hub.work()).revision > older.revision + 1


async def test_a_stop_by_a_session_stays_until_the_person_goes_on(home: Household) -> None:
    """The brake holds on the hub and here; no device lifts it by itself, and one that goes on signs."""
    ada = await home.person()
    of = operations(ada)
    hub = of.opened.hub
    await hub.set_work(SetWork(stopped=True))
    await of.work.tell()
    assert await hub_is_stopped(ada)
    with pytest.raises(WorkStopped):
        await of.work.require_going()
    with pytest.raises(WorkNotSigned):
        await hub.set_work(SetWork(stopped=False))
    await ada.set_caps(tokens_per_day_max=7)
    assert (await ada.work_state()).stopped_ms is not None
    home.places[0].wire.is_cut = True
    state = await ada.start_work()
    assert (state.stopped_ms, state.hub_told) == (None, False)
    await of.work.require_going()
    home.places[0].wire.is_cut = False
    await of.work.tell()
    assert not await hub_is_stopped(ada)
    assert (await ada.work_state()).hub_told


async def test_another_stop_by_a_session_is_not_lifted_with_the_one_before(
    home: Household,
) -> None:
    """Whoever let one stop go on has not seen the next, also where the hub's count was put back."""
    ada = await home.person()
    of = operations(ada)
    await of.opened.hub.set_work(SetWork(stopped=True))
    await of.work.tell()
    await ada.start_work()
    assert not await hub_is_stopped(ada)
    await change(home, "revision = 0, word = null, signer = null, signature = null")
    await of.opened.hub.set_work(SetWork(stopped=True))
    await of.work.tell()
    assert await hub_is_stopped(ada)
    with pytest.raises(WorkStopped):
        await of.work.require_going()


async def test_a_device_signs_no_revision_that_nobody_gets_to(home: Household) -> None:
    """A hub that counts as far as can be gets no word that nothing could follow; a stop holds all
    the same, and once the count is right again the person's next word does."""
    ada = await home.person()
    await ada.set_caps(tokens_per_day_max=5_000)
    held = await operations(ada).opened.hub.work()
    await change(home, "revision = $1", REVISION_MAX - 1)
    with pytest.raises(HubDistrusted):
        await ada.set_caps(tokens_per_day_max=4_000)
    await ada.stop_work()
    assert await hub_is_stopped(ada)
    await ada.start_work()
    assert await hub_is_stopped(ada)
    await change(home, "revision = $1", held.revision)
    await ada.set_caps(tokens_per_day_max=4_000)
    assert (await operations(ada).opened.hub.work()).tokens_per_day_max == 4_000


async def test_a_count_that_moved_alone_asks_for_a_word(home: Household) -> None:
    """A runner that knows a newer word, of a device that is gone, is given one above it."""
    ada = await home.person()
    await ada.set_caps(tokens_per_day_max=5_000)
    await change(home, "revision = revision + 3")
    of = operations(ada)
    moved = (await of.opened.hub.work()).revision
    await of.work.tell()
    held = await of.opened.hub.work()
    assert held.signed is not None
    assert held.signed.word["revision"] == held.revision == moved + 1
    await of.work.tell()
    assert (await of.opened.hub.work()).revision == moved + 1


async def test_a_word_of_a_device_that_is_not_known_yet_is_not_undone(home: Household) -> None:
    """What the person's newest device signed stands, also with a device that has not heard of it."""
    ada = await home.person()
    await ada.set_caps(tokens_per_day_max=5_000)
    phone = await home.second()
    await phone.sync_now()
    await phone.set_caps(tokens_per_day_max=6_000)
    known = operations(ada).opened.book.inner().syncer._spaces
    known._certificates.clear()
    known._authorities.clear()
    await operations(ada).work.tell()
    assert (await operations(ada).opened.hub.work()).tokens_per_day_max == 6_000
    state = await ada.work_state()
    assert (state.tokens_per_day_max, state.differs) == (6_000, False)


def calls_itself(name: str) -> Handler:
    """Return a hub in between that gives another hub's name for its own."""

    async def lie(request: httpx.Request, under: httpx.AsyncBaseTransport) -> httpx.Response | None:
        if request.method != "GET" or request.url.path not in WORK_SAID:
            return None
        answer = await under.handle_async_request(request)
        said = msgspec.json.decode(await answer.aread())
        said.get("work", said)["hub"] = name
        return httpx.Response(200, content=msgspec.json.encode(said), request=request)

    return lie


@pytest.mark.parametrize(
    ("is_new", "is_signed"),
    [(False, True), (True, True), (True, False)],
    ids=["known device", "new device", "new device, nothing signed yet"],
)
async def test_no_word_is_signed_for_another_hub(
    home: Household, is_new: bool, is_signed: bool
) -> None:
    """A hub that calls itself another than before gets no word, from a new device neither; a stop
    reaches it all the same, and lets nothing go on."""
    ada = await home.person()
    if is_signed:
        await ada.set_caps(tokens_per_day_max=5_000)
    await operations(ada).work.tell()
    await ada.sync_now()
    place = home.place() if is_new else home.places[0]
    place.wire.on_request = calls_itself("0" * 64)
    device = await place.host.sign_in("ada", PASSWORD) if is_new else ada
    place.wire.seen.clear()
    with pytest.raises(HubChanged):
        await device.set_caps(tokens_per_day_max=9_000)
    await device.stop_work()
    assert (await operations(device).opened.hub.work()).stopped_at is not None
    await device.start_work()
    assert (await operations(device).opened.hub.work()).stopped_at is not None
    sent = [body for method, path, body in place.wire.seen if (method, path) == SETTING]
    assert len(sent) == 1
    assert b'"signed":null' in sent[0]
    place.wire.on_request = None
    await operations(device).work.tell()
    assert (await operations(device).opened.hub.work()).stopped_at is None


async def test_another_hub_is_taken_by_its_name_alone(home: Household) -> None:
    """Where the hub is meant to be another, the person names it as it was told to them; from then
    on this device and new ones sign for it."""
    ada = await home.person()
    await ada.set_caps(tokens_per_day_max=5_000)
    book = operations(ada).opened.book
    await book.keep(KEPT_HUB, "0" * 64)
    state = await ada.work_state()
    assert (state.hub_changed, state.hub_known) == (True, "0" * 64)
    with pytest.raises(HubChanged):
        await ada.set_caps(tokens_per_day_max=4_000)
    for name in ("", state.hub_said[:7], "0" * 8):
        with pytest.raises(Invalid):
            await ada.accept_hub(name)
    assert not (await ada.accept_hub(state.hub_said[:8].upper())).hub_changed
    assert (await ada.set_caps(tokens_per_day_max=4_000)).tokens_per_day_max == 4_000


def unread(also: Handler | None = None) -> Handler:
    """Return a hub in between that shows no state of a space, and else does as `also`."""

    async def away(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if request.url.path.endswith("/records"):
            raise httpx.ConnectError("cut", request=request)
        return await also(request, under) if also is not None else None

    return away


async def shown_older(home: Household) -> WorkState:
    """Have Ada lower her cap from 50,000 to 4,000, and the hub show the word before; return that."""
    ada = await home.person()
    await ada.set_caps(tokens_per_day_max=50_000)
    older = await operations(ada).opened.hub.work()
    assert older.signed is not None
    await ada.set_caps(tokens_per_day_max=4_000)
    await ada.sync_now()
    await change(
        home,
        "word = $1, signature = $2, revision = $3, tokens_per_day_max = 50000",
        msgspec.json.encode(older.signed.word, order="sorted").decode(),
        older.signed.signature.value,
        older.revision,
    )
    return older


async def test_a_new_device_knows_of_a_word_that_is_kept_from_it(home: Household) -> None:
    """A hub that shows a new device the word before the last gets none that builds on it."""
    older = await shown_older(home)
    place = home.place()
    place.wire.on_request = unread()
    phone = await place.host.sign_in("ada", PASSWORD)
    assert (await phone.work_state()).tokens_per_day_max == 50_000, "it has read nothing yet"
    place.wire.on_request = None
    await phone.set_caps(cost_per_day_max=7)
    held = await operations(phone).opened.hub.work()
    assert (held.tokens_per_day_max, held.cost_per_day_max) == (4_000, 7)
    assert held.revision > older.revision + 1


async def test_a_device_that_has_read_nothing_replaces_no_word(home: Household) -> None:
    """A hub that shows a new device an older word before its settings has it share that with nobody:
    the newest that the person's devices share stays."""
    await shown_older(home)
    place = home.place()
    place.wire.on_request = unread()
    phone = await place.host.sign_in("ada", PASSWORD)
    await operations(phone).work.tell()
    place.wire.on_request = None
    await phone.sync_now()
    await phone.set_caps(cost_per_day_max=7)
    held = await operations(phone).opened.hub.work()
    assert (held.tokens_per_day_max, held.cost_per_day_max) == (4_000, 7)


async def test_a_device_that_has_read_nothing_replaces_no_hub(home: Household) -> None:
    """A new device that is lied to of the hub's name before it read the settings misleads no other."""
    ada = await home.person()
    await ada.set_caps(tokens_per_day_max=50_000)
    await ada.sync_now()
    place = home.place()
    place.wire.on_request = unread(calls_itself("0" * 64))
    phone = await place.host.sign_in("ada", PASSWORD)
    await operations(phone).work.tell()
    place.wire.on_request = None
    await phone.sync_now()
    await operations(phone).work.tell()
    await phone.sync_now()
    third = await home.place().host.sign_in("ada", PASSWORD)
    await third.sync_now()
    state = await third.work_state()
    assert not state.hub_changed
    assert state.hub_known != "0" * 64


async def shared_notes(device: Device) -> set[str]:
    """Return which notes on the account's work are in the person's settings, as they are here."""
    view = await operations(device).opened.book.view(SETTINGS.name, SETTINGS_ID)
    return {path for path in NOTES if view is not None and view.values.get(path) is not None}


async def test_notes_that_the_hub_refuses_are_written_once(home: Household) -> None:
    """A hub that does not know the notes gets them once; they lie parked, and none is added to them,
    after a restart neither; work is told all the same, and once taken they reach other devices."""
    place = home.place()
    ada = await place.host.sign_up("ada", PASSWORD, display_name="Ada")
    await ada.sync_now()
    pushed: list[str] = []
    now_iso = operations(ada).opened.now_iso

    async def older(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if (request.method, request.url.path.rpartition("/")[2]) != ("POST", "changes"):
            return None
        sent = msgspec.json.decode(await request.aread(), type=PushRequest).changes
        if not any(NOTES & set(one.fields) for one in sent):
            return None
        pushed.extend(one.change_id for one in sent)
        refused = [PushResult(one.change_id, "refused", code="unknown-path") for one in sent]
        answer = PushAnswer(results=refused, cursor=0, hub_time=now_iso())
        return httpx.Response(200, content=msgspec.json.encode(answer), request=request)

    place.wire.on_request = older
    for tokens in (5_000, 4_000, 3_000):
        await operations(ada).work.tell()
        await ada.sync_now()
        await ada.set_caps(tokens_per_day_max=tokens)
    assert len(pushed) == 1
    assert (await operations(ada).opened.book.status()).refused == 1
    account = operations(ada).opened.account_id
    await place.host.lock(account)
    again = await place.host.sign_in("ada", PASSWORD)
    await operations(again).work.tell()
    await again.sync_now()
    assert len(pushed) == 1
    assert (await operations(again).opened.hub.work()).tokens_per_day_max == 3_000
    place.wire.on_request = None
    (parked,) = await operations(again).records.refused()
    await operations(again).records.drop_refused(parked.change_id)
    await operations(again).work.tell()
    await again.sync_now()
    assert await shared_notes(again) == NOTES


@pytest.mark.parametrize("name", ["", "0" * 63, "0" * 65, "Z" * 64, "0" * 5_000])
async def test_what_no_hub_is_called_is_no_name(home: Household, name: str) -> None:
    """A hub without a name, or with one that no hub has, gets no word, and is told so; it is kept and
    shared nowhere, ends nothing that the device does by itself, and leaves the way to the real one."""
    place = home.place()
    place.wire.on_request = calls_itself(name)
    ada = await place.host.sign_up("ada", PASSWORD, display_name="Ada")
    await operations(ada).work.tell()
    await ada.sync_now()
    await operations(ada).work.tell()
    assert await shared_notes(ada) == set()
    state = await ada.work_state()
    assert (state.hub_unnamed, state.hub_changed) == (True, False)
    assert (state.hub_said, state.hub_known) == ("", "")
    with pytest.raises(HubChanged, match="says no name"):
        await ada.set_caps(tokens_per_day_max=5_000)
    with pytest.raises(HubChanged, match="says no name"):
        await ada.accept_hub(name[:8])
    await ada.stop_work()
    assert await hub_is_stopped(ada)
    place.wire.on_request = None
    await ada.start_work()
    assert not await hub_is_stopped(ada)
    assert not (await ada.set_caps(tokens_per_day_max=5_000)).hub_unnamed


async def change(home: Household, sql: str, *values: object) -> None:
    """Change the hub's row by hand."""
    async with connected(home.database.owner_url) as owner:
        await owner.execute(f"update mana_ai.account_work set {sql}", *values)


def news(of: Operations) -> None:
    """Let the device ask the hub anew."""
    of.work._news.moved()


async def test_device_that_has_not_heard_yet_undoes_nothing(home: Household) -> None:
    """A device that finds the hub stopped looks for the person's newest word before it speaks."""
    ada = await home.person()
    phone = await home.second()
    await phone.sync_now()
    await ada.stop_work()
    await operations(phone).work.tell()
    assert await hub_is_stopped(ada)
    assert (await phone.work_state()).stopped_ms is not None


async def test_planned_steps_wait_while_work_is_stopped(home: Household) -> None:
    """What policy lets run by itself does not run either, also in the middle of a run's steps."""
    ada = await home.person(model=creating("One", "Two", "Three"))
    mission, _, _ = await planned_mission(ada, runs_on="device", preset="aggressive")
    of = operations(ada)
    execute = of.runner._executing._execute

    async def then_stop(step_id: str) -> bool:
        done = await execute(step_id)
        await of.records.write_settings({"workStoppedAt": of.opened.now_iso()})
        return done

    of.runner._executing._execute = then_stop  # type: ignore[method-assign]
    before = len(await ada.list("tasks"))
    await ada.run_now(mission)
    assert len(await ada.list("tasks")) == before + 1
    assert len(await of.opened.book.views(ITERATIONS.name)) == 1


async def test_the_hub_reads_nothing_of_the_word(home: Household) -> None:
    """The setting travels sealed; what the hub needs to know it is told by its own call."""
    ada = await home.person()
    await ada.stop_work()
    await ada.sync_now()
    record = await operations(ada).opened.book.record(SETTINGS.name, "settings-global")
    assert record is not None
    assert str(record.entries["workStoppedAt"].value).startswith("enc:2:")


async def test_word_that_cannot_be_read_stops(home: Household) -> None:
    """A stop whose moment is malformed is still a stop."""
    ada = await home.person()
    of = operations(ada)
    assert await of.work.stopped_ms() is None

    async def broken(table: str, record_id: str) -> object:
        view = await view_of(table, record_id)
        return view and type(view)(view.table, view.id, {**view.values, "workStoppedAt": "soon"})

    view_of = of.opened.book.view
    of.opened.book.view = broken  # type: ignore[assignment,method-assign]
    assert await of.work.stopped_ms() == 0


async def test_caps_of_the_account_are_set_and_removed(home: Household) -> None:
    """A cap is set at the hub, shown with what was used, and removed by None."""
    ada = await home.person()
    await ada.set_caps(tokens_per_day_max=5_000, cost_per_day_max=2_000_000)
    state = await ada.set_caps(cost_per_day_max=None)
    assert (state.tokens_per_day_max, state.cost_per_day_max) == (5_000, None)
    with pytest.raises(Invalid):
        await ada.set_caps(tokens_per_day_max=-5)
