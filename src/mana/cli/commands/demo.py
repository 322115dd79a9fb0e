"""`mana demo`: the main job on a throw-away instance, each step checked before it is told.

Nothing here is arranged: real processes, the real database, the model that is configured (the
offline rules if none is). A step that cannot be verified ends the demo with status 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer

from mana.cli.instance import Running, started
from mana.cli.places import Places
from mana.device.app import DeviceHost, build
from mana.device.desk import Device
from mana.device.settings import DeviceSettings
from mana.device.views import Bucket, Proposal
from mana.domain.cadences import Cadence
from mana.domain.encoding import Json
from mana.domain.errors import ManaError
from mana.domain.missions import InputRef
from mana.hub.postgres import find_binaries
from mana.protocol.errors import WorkStopped

LOGIN: Final = "ada"
PASSWORD: Final = "correct horse battery staple"
NOTES: Final = (
    (
        "Garden plan",
        "Beds are dug.\nTODO: order tomato seeds by 2026-12-01\n- [ ] call the water company",
    ),
    ("Dentist", "Dr. Weiss says twice a year. I must call to book an appointment by Friday."),
    ("Diary 3 March", "Nobody should ever read about the lighthouse."),
)
TASKS: Final = (
    ("Pay the electricity bill", "2026-01-15"),
    ("Renew the library card", None),
    ("Buy a birthday present for Jonas", "2026-02-01"),
    ("Water the ferns", None),
    ("Read the contract of the flat", None),
)
GRANTED_NOTES: Final = 2
GRANTED_TASKS: Final = 3


class StepUnverified(ManaError):
    """A step of the demo did not have its effect."""

    code = "DEMO_UNVERIFIED"


@dataclass(slots=True)
class Story:
    """What happened so far: told line by line, or kept for one JSON document."""

    as_json: bool
    steps: list[dict[str, object]] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Tell one line to a person."""
        if not self.as_json:
            typer.echo(line)

    @contextmanager
    def step(self, title: str) -> Iterator[dict[str, object]]:
        """Run one step; its facts are what the block puts into the dictionary."""
        began = time.monotonic()
        facts: dict[str, object] = {}
        entry: dict[str, object] = {"step": title, "ok": False, "facts": facts}
        self.steps.append(entry)
        self.say(f"\n{len(self.steps)}. {title}")
        yield facts
        entry["ok"] = True
        entry["seconds"] = round(time.monotonic() - began, 3)
        self.say("   verified")

    def tell(self, line: str) -> None:
        """Tell a detail of the step."""
        self.say(f"   {line}")


def require(holds: bool, what: str) -> None:
    """Raise StepUnverified, naming what should have held."""
    if not holds:
        raise StepUnverified(f"not verified: {what}")


@dataclass(slots=True)
class Demo:
    """The instance, the device and what later steps need of earlier ones."""

    running: Running
    host: DeviceHost
    home: Path
    story: Story
    environ: Mapping[str, str]
    device: Device
    secrets: list[str] = field(default_factory=list)
    note_ids: list[str] = field(default_factory=list)
    task_ids: list[str] = field(default_factory=list)
    agent_id: str = ""
    mission_id: str = ""
    grant_id: str = ""
    iteration_id: str = ""

    def dump(self) -> str:
        """Return the whole database of the hub as text, as a thief of it would read it."""
        programs = find_binaries(self.environ)
        done = subprocess.run(
            [str(programs.program("pg_dump")), "--dbname", self.running.database_url],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def rows(self, table: str, record_id: str) -> list[str]:
        """Return the lines of the dump that hold a record."""
        return [
            line
            for line in self.dump().splitlines()
            if record_id in line and f"\t{table}\t" in line
        ]

    async def tick(self) -> dict[str, Json]:
        """Let the runner look for what is due, and wait until it is done."""
        key = (self.home / "secrets" / "service.key").read_text().strip()
        async with httpx.AsyncClient(timeout=120) as client:
            answer = await client.post(
                f"{self.running.runner_url}/internal/tick", headers={"X-Service-Key": key}
            )
        answer.raise_for_status()
        stats: dict[str, Json] = answer.json()
        return stats


def demo(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document and nothing else.")
    ] = False,
) -> None:
    """Play the main job on a throw-away instance, and check every step."""
    story = Story(as_json)
    folder = Path(tempfile.mkdtemp(prefix="mana-demo-"))
    problem: dict[str, Json] | None = None
    try:
        asyncio.run(_play(folder, story))
    except ManaError as error:
        problem = {"code": error.code, "title": error.message, "advice": error.advice}
    except (httpx.HTTPError, OSError, subprocess.CalledProcessError) as error:
        problem = {"code": "DEMO_FAILED", "title": type(error).__name__, "advice": ""}
    except asyncio.CancelledError:
        problem = {"code": "DEMO_STOPPED", "title": "stopped before its end", "advice": ""}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ok = problem is None
    if as_json:
        document: dict[str, object] = {"ok": ok, "steps": story.steps}
        if problem is not None:
            document["problem"] = problem
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
    elif problem is not None:
        typer.echo(f"\nmana: {problem['title']} [{problem['code']}]", err=True)
    else:
        typer.echo(f"\nAll {len(story.steps)} steps verified. Start your own with: make run")
    raise typer.Exit(0 if ok else 1)


async def _play(folder: Path, story: Story) -> None:
    environ = {
        **os.environ,
        "MANA_HOME": str(folder),
        "TICK_ENABLED": "false",
        "MANA_SIGNUP": "open",
    }
    environ.pop("MANA_DATABASE_URL", None)
    environ.pop("MANA_FAIL_POINT", None)
    places = Places(folder, {"hub": 0, "runner": 0, "device": 0})
    places.make_home()
    # A signal ends the demo as an exception does, so that everything it started is stopped.
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with story.step("Start a Mana of its own: PostgreSQL, hub and runner") as facts:
        context = started(places, environ, say=story.tell, with_device=False)
        running = await context.__aenter__()
        facts.update(hub=running.hub_url, runner=running.runner_url, model=running.model)
    try:
        host = build(DeviceSettings.from_env({**environ, "MANA_HUB_URL": running.hub_url}))
        try:
            with story.step("Sign up: the device makes the keys") as facts:
                device = await host.sign_up(
                    LOGIN, PASSWORD, display_name="Ada", mode="standard", zone="Europe/Berlin"
                )
                status = await device.status()
                require(not status.locked and status.mode == "standard", "an unlocked account")
                facts.update(account=device.account_id, mode=status.mode)
                story.tell(f"account {device.account_id}, standard mode")
                story.tell("master key, identity, device key and space keys were made here; the")
                story.tell("hub got them wrapped, and its key-encryption key can reset a password")
            play = Demo(running, host, folder, story, environ, device)
            for part in _STEPS:
                await part(play)
        finally:
            await host.close()
    finally:
        await context.__aexit__(None, None, None)


async def _write(play: Demo) -> None:
    with play.story.step("Write three notes and five tasks, sealed before they leave") as facts:
        device = play.device
        for title, content in NOTES:
            play.note_ids.append(await device.create("notes", {"title": title, "content": content}))
            play.secrets += [title, *content.splitlines()]
        for title, due in TASKS:
            values: dict[str, Json] = {"title": title}
            if due is not None:
                values["dueDate"] = due
            play.task_ids.append(await device.create("tasks", values))
            play.secrets.append(title)
        status = await device.sync_now()
        require(status.waiting == 0, "the hub acknowledged every write")
        rows = play.rows("notes", play.note_ids[0])
        require(bool(rows) and all("enc:2:s1:" in row for row in rows), "the hub stored envelopes")
        envelope = rows[0][rows[0].index("enc:2:s1:") :].split('"')[0]
        facts.update(notes=len(NOTES), tasks=len(TASKS), stored=envelope[:80])
        play.story.tell(f"what the hub stored of “{NOTES[0][0]}”: {envelope[:60]}…")
        _scan(play, play.dump().encode(), "the database")


async def _plan(play: Demo) -> None:
    with play.story.step("Create an agent and a mission") as facts:
        device = play.device
        play.agent_id = await device.create_agent(
            "Mira", role="Keeps the week in order.", avatar="🦉", preset="standard"
        )
        inputs = [InputRef("notes", "notes", one) for one in play.note_ids[:GRANTED_NOTES]]
        inputs += [InputRef("todo", "tasks", one) for one in play.task_ids[:GRANTED_TASKS]]
        objective = "Find what has to be done this week and propose tasks for it."
        play.mission_id = await device.create_mission(
            "Weekly review",
            objective,
            agent_id=play.agent_id,
            inputs=inputs,
            cadence=Cadence("weekly", day_of_week=0, at_hour=10),
            zone="Europe/Berlin",
        )
        play.secrets += ["Weekly review", objective, "Mira", "Keeps the week in order."]
        mission = await device.mission(play.mission_id)
        require(len(mission.next_ms) == 3, "the next three due moments are known")
        facts.update(agent="Mira", mission="Weekly review", cadence=mission.cadence_words)
        play.story.tell(f"Mira · Weekly review · {mission.cadence_words}")


async def _grant(play: Demo) -> None:
    with play.story.step("Grant exactly two notes and three tasks, after reading the consent") as f:
        consent = await play.device.consent(play.mission_id, days=7)
        for line in consent.lines:
            play.story.tell(f"│ {line}")
        titles = [record.title for record in consent.records]
        require(
            sorted(titles)
            == sorted(
                [n for n, _ in NOTES[:GRANTED_NOTES]] + [t for t, _ in TASKS[:GRANTED_TASKS]]
            ),
            "the consent names exactly the chosen records",
        )
        grant = await play.device.grant(play.mission_id, days=7)
        require(grant.state == "active", "the grant is in the register")
        play.grant_id = grant.grant_id
        f.update(consent=list(consent.lines), records=titles, grant=grant.grant_id)


async def _stopped(play: Demo) -> None:
    with play.story.step("Stop all work: a run is refused; then let it go on") as facts:
        now = await play.device.stop_work()
        require(now.stopped_ms is not None and now.hub_told, "the hub knows that work is stopped")
        code = ""
        try:
            await play.device.run_now(play.mission_id)
        except WorkStopped as error:
            code = error.code
            play.story.tell(f"a run: {error.message} [{error.code}]")
        require(bool(code), "no run begins while work is stopped")
        now = await play.device.start_work()
        require(now.stopped_ms is None and now.hub_told, "the hub knows that work goes on")
        facts.update(refused=code, tokens=now.tokens_today, currency=now.currency)


async def _away(play: Demo) -> None:
    with play.story.step("Lock the device, and let the runner work while it is away") as facts:
        run = await play.device.run_now(play.mission_id)
        require(run is not None, "an occurrence is queued on the hub")
        await play.device.sync_now()
        await play.host.lock(play.device.account_id)
        stats = await play.tick()
        require(stats["plansWrittenBack"] == 1 and not stats["errors"], "one plan was written back")
        facts.update(tick=stats)
        play.story.tell(f"tick: {json.dumps(stats)}")
        play.device = await play.host.sign_in(LOGIN, PASSWORD)
        await play.device.sync_now()


async def _audited(play: Demo) -> None:
    with play.story.step("See what the runner read: the audit, checked on this device") as facts:
        access = await play.device.data_access()
        read = {reading.record_id for reading in access.readings if reading.status == "ok"}
        granted = {*play.note_ids[:GRANTED_NOTES], *play.task_ids[:GRANTED_TASKS]}
        hidden = {*play.note_ids[GRANTED_NOTES:], *play.task_ids[GRANTED_TASKS:]}
        require(granted <= read, "each granted record has its audit row")
        require(not hidden & read, "nothing else of yours was read")
        require(access.chain_ok, "the audit's chain is whole")
        for reading in access.readings:
            play.story.tell(reading.sentence)
        play.story.tell(access.chain_words)
        facts.update(readings=[r.sentence for r in access.readings], chain=access.chain_words)


async def _proposed(play: Demo) -> None:
    with play.story.step("See the sealed iteration on the hub, and the proposals here") as facts:
        inbox = await play.device.inbox()
        require(len(inbox) >= 2, "there are at least two proposals")
        require(all(one.verified for one in inbox), "the runner's signature holds on each")
        play.iteration_id = inbox[0].iteration_id
        rows = play.rows("aiIterations", play.iteration_id)
        require(bool(rows) and all("enc:2:m1:" in row for row in rows), "the iteration is sealed")
        opened = [one.title for one in inbox[0].cited]
        require(len(opened) == GRANTED_NOTES + GRANTED_TASKS, "it names the inputs that it opened")
        play.story.tell("inputs that were opened: " + ", ".join(opened))
        play.story.tell(f"planned by {inbox[0].model}, {inbox[0].tokens} tokens")
        for one in inbox:
            play.story.tell(f"□ {one.sentence} — {one.rationale}")
            play.secrets += [one.sentence, one.rationale]
        facts.update(proposals=[one.sentence for one in inbox], opened=opened)


async def _decided(play: Demo) -> None:
    with play.story.step("Approve one, reject one") as facts:
        inbox = await play.device.inbox()
        chosen = next((one for one in inbox if _creates(one)), inbox[0])
        other = next(one for one in inbox if one.step_id != chosen.step_id)
        before = len(await play.device.list("tasks"))
        approved = await play.device.approve(chosen.step_id)
        rejected = await play.device.reject(other.step_id, reason="Not needed")
        play.secrets.append("Not needed")
        require(approved.state == "approved", "the approved proposal is done")
        require(rejected.state == "rejected", "the rejected one is not")
        status = await play.device.sync_now()
        require(status.waiting == 0 and status.refused == 0, "the hub accepted both decisions")
        if _creates(chosen):
            require(len(await play.device.list("tasks")) == before + 1, "its effect is there")
        left = {one.step_id for one in await play.device.inbox()}
        require(not left & {chosen.step_id, other.step_id}, "neither is asked again")
        facts.update(approved=chosen.sentence, rejected=other.sentence)
        play.story.tell(f"approved: {chosen.sentence}")
        play.story.tell(f"rejected: {other.sentence}")


async def _reverted(play: Demo) -> None:
    with play.story.step("See it on the timeline, and revert it") as facts:
        bucket = _bucket(await play.device.timeline(), play.iteration_id)
        states = [line.state for line in bucket.lines]
        require("done" in states and "rejected" in states, "the timeline shows both decisions")
        for line in bucket.lines:
            play.story.tell(f"{bucket.agent_name} · {line.sentence} · {line.state}")
        before = len(await play.device.list("tasks"))
        preview = await play.device.revert(f"iteration:{play.iteration_id}")
        require(bool(preview.restored) and not preview.conflicts, "everything could be restored")
        status = await play.device.sync_now()
        require(status.waiting == 0 and status.refused == 0, "the hub accepted the revert")
        bucket = _bucket(await play.device.timeline(), play.iteration_id)
        require("reverted" in [line.state for line in bucket.lines], "the timeline shows it")
        after = len(await play.device.list("tasks"))
        facts.update(restored=[one.title for one in preview.restored], before=before, after=after)
        play.story.tell("restored: " + ", ".join(one.title for one in preview.restored))


async def _revoked(play: Demo) -> None:
    with play.story.step("Revoke the grant: the next tick refuses") as facts:
        known = len((await play.device.data_access()).readings)
        await play.device.revoke(play.grant_id)
        await play.device.run_now(play.mission_id)
        stats = await play.tick()
        require(stats["plansWrittenBack"] == 0, "nothing was planned")
        await play.device.sync_now()
        mission = await play.device.mission(play.mission_id)
        latest = max(mission.runs, key=lambda run: run.scheduled_ms)
        require(
            latest.state == "skipped" and latest.reason == "revoked", "it was refused as revoked"
        )
        readings = (await play.device.data_access()).readings
        opened = [one for one in readings[: len(readings) - known] if one.status == "ok"]
        require(not opened, "nothing was opened")
        facts.update(state=latest.state, reason=latest.reason, words=latest.reason_words)
        play.story.tell(f"the run ledger says: {latest.reason_words}")


async def _searched(play: Demo) -> None:
    with play.story.step(
        "Search the hub's database, its log files and its logs for any of it"
    ) as f:
        _scan(play, play.dump().encode(), "the database")
        files = 0
        for folder in ("postgres", "logs"):
            for path in sorted((play.home / folder).rglob("*")):
                if path.is_file():
                    files += 1
                    _scan(play, path.read_bytes(), f"{folder}/{path.name}")
        f.update(files=files, texts=len(_needles(play)))
        play.story.tell(f"{len(_needles(play))} texts, {files} files and a dump: none found")


def _creates(proposal: Proposal) -> bool:
    return any(diff.op == "insert" and diff.table == "tasks" for diff in proposal.diffs)


def _bucket(buckets: Sequence[Bucket], iteration_id: str) -> Bucket:
    found = [one for one in buckets if one.iteration_id == iteration_id]
    require(len(found) == 1, "the iteration is one bucket on the timeline")
    return found[0]


def _needles(play: Demo) -> list[str]:
    """Return the texts to look for; words that are too short would be found by chance."""
    return sorted({text.strip() for text in play.secrets if len(text.strip()) >= 6})


def _scan(play: Demo, data: bytes, where: str) -> None:
    for text in _needles(play):
        for form in (text.encode(), json.dumps(text)[1:-1].encode(), text.encode("utf-16-le")):
            require(form not in data, f"no text of yours in {where}")


_STEPS: Final[tuple[Callable[[Demo], Awaitable[None]], ...]] = (
    _write,
    _plan,
    _grant,
    _stopped,
    _away,
    _audited,
    _proposed,
    _decided,
    _reverted,
    _revoked,
    _searched,
)
