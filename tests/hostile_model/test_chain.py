"""From a hostile reply to a changed record, through everything between: nothing that nobody allowed.

A real hub and runner, a real device, and models whose every reply is the attacker's. After each run
every write of an agent is held against what the person had set, and what they approved.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from mana.device.desk import Device
from mana.device.journal import decide_change_id
from mana.device.records import RecordBook
from mana.device.unseen import visible_json
from mana.device.views import Proposal
from mana.domain.encoding import Json
from mana.domain.errors import ManaError
from mana.domain.iterations import ITERATIONS, STEPS, STEPS_MAX
from mana.domain.missions import InputRef
from mana.domain.policy import DECISIONS, EFFECTS, PRESETS, Policy, SpacePolicy, decide
from mana.domain.records import Entry, View
from mana.domain.tools import PROPOSE_MEMORY
from mana.testing.hostile_model import HostileModel, ObedientModel, carried
from mana.testing.postgres import Database, database_text
from tests.device.household import Household, household, operations, shared_space
from tests.hostile_model.modules import CATALOGUE, with_post

__all__ = ["with_post"]
pytestmark = [pytest.mark.anyio, pytest.mark.postgres, pytest.mark.usefixtures("with_post")]
SECRET = "KESTREL-4711"
ELSEWHERE = "Of another space."
BY_ITSELF = Policy({"read": "auto", "write": "auto", "destructive": "auto", "external": "auto"})
LIFTABLE = ("update_note", "burn_letter", "send_mail", "web_search")
RUN = frozenset({ITERATIONS.name, STEPS.name, "aiJournal"})
KEPT = ("auditHead", "runnerKeys")
"""Settings in which a device keeps what it saw of the hub's runner."""
policies = st.one_of(
    st.sampled_from([*PRESETS.values(), BY_ITSELF]),
    st.builds(
        Policy,
        st.fixed_dictionaries({effect: st.sampled_from(DECISIONS) for effect in EFFECTS}),
        st.dictionaries(st.sampled_from(LIFTABLE), st.just("auto"), max_size=2),
    ),
)
# Runs of one household follow each other, so that none can be made smaller than it was.
chains = settings(
    max_examples=8,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[*HealthCheck],
    print_blob=True,
)


@dataclass
class Case:
    """One agent under a policy, its mission, and what the person approved of it."""

    device: Device
    other: RecordBook
    mission: str
    agent: str
    policy: Policy
    space: SpacePolicy
    approved: dict[str, Proposal] = field(default_factory=dict)

    @property
    def book(self) -> RecordBook:
        """Return the records of the mission's space."""
        return operations(self.device).opened.book


@pytest.fixture
async def home(database: Database) -> AsyncIterator[Household]:
    async with household(database) as made:
        yield made


Entries = dict[tuple[str, str, str], Entry]


async def entries(book: RecordBook) -> Entries:
    """Return every path of every record of a space, as it is stored."""
    found: Entries = {}
    for table in CATALOGUE.tables:
        if book.space_of(table.name) != book.space:
            continue
        for view in await book.views(table.name, include_deleted=True):
            record = await book.record(table.name, view.id)
            assert record is not None
            found |= {(table.name, view.id, path): one for path, one in record.entries.items()}
    return found


async def begin(home: Household, policy: Policy, lifted: frozenset[str], **options: Any) -> Case:
    """Return a new agent with a mission in a space, beside another space of the same person."""
    if not home.places:
        ada = await home.person(model=ObedientModel())
        away = ada.in_space(await shared_space(ada))
        await away.create("notes", {"title": "Team", "content": ELSEWHERE})
    ada = home.places[0].host.device(home.places[0].host.accounts()[0].account_id)
    spaces = await ada.spaces()
    away = next(one.space_id for one in spaces if one.space_id != operations(ada).opened.space)
    note = await ada.create("notes", {"title": "Bank", "content": f"The code is {SECRET}."})
    task = await ada.create("tasks", {"title": "Pay rent"})
    letter = await ada.create("letters", {"subject": "Draft", "to": "bo", "body": "Hello."})
    agent = await ada.create_agent("Mira", memory="Likes mornings.")
    await ada.edit_agent(agent, policy=policy)
    for tool in LIFTABLE:
        await (ada.lift(tool, acknowledged=True) if tool in lifted else ada.unlift(tool))
    mission = await ada.create_mission(
        "Weekly review",
        options.pop("objective", "Find open tasks"),
        agent_id=agent,
        inputs=[
            InputRef("notes", "notes", note),
            InputRef("todo", "tasks", task),
            InputRef("post", "letters", letter),
        ],
        **options,
    )
    book = operations(ada.in_space(away)).opened.book
    return Case(ada, book, mission, agent, policy, SpacePolicy(lifted))


class Leaving:
    """What this process connects to or starts while somebody watches; sockets of the disk aside."""

    def __init__(self) -> None:
        self.watching = False
        self.seen: list[str] = []
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watching or event not in (
            "socket.connect",
            "socket.sendto",
            "socket.getaddrinfo",
            "subprocess.Popen",
            "os.system",
            "os.exec",
        ):
            return
        if event == "socket.connect" and isinstance(args[1], str | bytes):
            return
        self.seen.append(f"{event} {args[1:]!r}")

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Note what leaves meanwhile."""
        self.watching = True
        try:
            yield
        finally:
            self.watching = False


LEAVING = Leaving()


async def texts(device: Device) -> dict[str, dict[str, Json]]:
    """Return what stands in the records of the modules that are not deleted; empty is absent."""
    return {
        view.id: {name: value for name, value in view.values.items() if value not in (None, False)}
        for table in ("notes", "tasks", "letters", "agentMemory")
        for view in await device.list(table)
    }


async def decide_somehow(case: Case, dice: random.Random) -> None:
    """Approve some of what waits, as the person saw it, and reject some."""
    for waiting in await case.device.inbox():
        if waiting.mission_id != case.mission:
            continue
        word = dice.choice(("approve", "approve", "reject", "leave"))
        with contextlib.suppress(ManaError):
            if word == "reject":
                await case.device.reject(waiting.step_id)
            elif word == "approve":
                await case.device.approve(waiting.step_id)
                case.approved[waiting.step_id] = waiting


async def require_allowed(case: Case, before: Entries, elsewhere: Entries) -> int:
    """Hold every write of an agent against what the person set and approved; return how many."""
    device, after = case.device, await entries(case.book)
    assert await entries(case.other) == elsewhere
    steps = {view.id: view for view in await device.list(STEPS.name)}
    mine = {one: view for one, view in steps.items() if view.text("missionId") == case.mission}
    runs = {view.text("iterationId") for view in mine.values()}
    assert all(
        sum(view.text("iterationId") == run for view in mine.values()) <= STEPS_MAX for run in runs
    )
    allowed: dict[tuple[str, str], dict[str, str]] = {}
    for step_id, step in mine.items():
        tool, preview = CATALOGUE.tool(tool_of(step)), step.values["preview"]
        assert isinstance(preview, list)
        word = decide(
            tool.name,
            tool.effect,
            agent=case.policy,
            space=case.space,
            tainted=True,
            always_asks=tool.always_asks,
        )
        assert step.values["decision"] == word != "deny"
        if step.text("status") == "approved":
            assert step_id in case.approved or word == "auto"
        assert step.actors["intent"].principal_id == case.agent
        if step_id not in case.approved and word != "auto":
            continue
        for item in preview:
            assert isinstance(item, dict)
            key = (str(item["table"]), str(item["id"]))
            allowed.setdefault(key, {})[decide_change_id(step_id, *key)] = step_id
    writes = 0
    for where, entry in after.items():
        table, record_id, path = where
        if before.get(where) == entry or table in RUN:
            continue
        if table == "userSettings" and path.partition("/")[0] in KEPT:
            assert entry.actor.kind == "user"
            continue
        writes += 1
        assert entry.change_id in allowed.get((table, record_id), {}), f"nobody allowed {where}"
        step_id = allowed[table, record_id][entry.change_id]
        if step_id in case.approved:
            value = (await case.book.opened_paths(table, record_id)).get(path)
            require_shown(case.approved[step_id], where, value)
        if table == "agentMemory":
            assert (record_id, path) == (case.agent, "content")
            assert step_id in case.approved
            assert tool_of(mine[step_id]) == PROPOSE_MEMORY
        else:
            assert not CATALOGUE.table(table).authority
            assert (entry.actor.kind, entry.actor.principal_id) == ("ai", case.agent)
    assert set(before) <= set(after)
    return writes


def require_shown(proposal: Proposal, where: tuple[str, str, str], value: Json) -> None:
    """Require that a path became exactly what the person was shown when they approved."""
    table, record_id, path = where
    (diff,) = [one for one in proposal.diffs if (one.table, one.record_id) == (table, record_id)]
    if path == "deletedAt":
        assert (diff.op == "delete") == (value is not None)
        return
    shown = {field.name: field.after for field in diff.fields}
    # What stays as it is, or is empty in a new record, is no difference.
    if path in shown:
        assert visible_json(value) == shown[path]
    else:
        assert value in (None, "", False) or diff.op == "update"


def tool_of(step: View) -> str:
    """Return the tool of a step."""
    intent = step.values["intent"]
    assert isinstance(intent, dict)
    return str(intent["toolName"])


@chains
@given(seed=st.integers(0, 2**32), policy=policies, lifted=st.frozensets(st.sampled_from(LIFTABLE)))
async def test_nothing_happens_that_nobody_allowed(
    home: Household, seed: int, policy: Policy, lifted: frozenset[str]
) -> None:
    """On a device each write is approved, or set to happen by itself, and all of it can be undone."""
    note(f"seed {seed}, {policy}, {sorted(lifted)}")
    case = await begin(home, policy, lifted, runs_on="device")
    dice = random.Random(seed)
    foreign = [view.id for view in await case.other.views("notes")]
    model = HostileModel(seed, ids=[*foreign, case.mission, case.agent, case.book.space])
    object.__setattr__(operations(case.device).opened, "model", model)
    home.places[0].wire.seen.clear()
    before, elsewhere = await entries(case.book), await entries(case.other)
    stood = await texts(case.device)
    with LEAVING.watch():
        for _ in range(2):
            await case.device.run_now(case.mission)
            await decide_somehow(case, dice)
        await case.device.sync_now()
    writes = await require_allowed(case, before, elsewhere)
    assert LEAVING.seen == []
    out = b" ".join(body for _, _, body in home.places[0].wire.seen).decode("latin-1")
    paths = " ".join(path for _, path, _ in home.places[0].wire.seen)
    assert carried(out + paths, SECRET) == []
    assert all(ELSEWHERE not in str(request.messages) for request in model.requests)
    if writes:
        await case.device.revert(f"mission:{case.mission}")
    assert await texts(case.device) == stood


@chains
@given(seed=st.integers(0, 2**32), policy=policies, lifted=st.frozensets(st.sampled_from(LIFTABLE)))
async def test_nothing_happens_that_nobody_allowed_by_the_runner(
    home: Household, seed: int, policy: Policy, lifted: frozenset[str]
) -> None:
    """The same for a granted mission that the hub's runner works on, whose device executes it."""
    note(f"seed {seed}, {policy}, {sorted(lifted)}")
    case = await begin(home, policy, lifted)
    foreign = [view.id for view in await case.other.views("notes")]
    elsewhere = await entries(case.other)
    model = HostileModel(seed, ids=[*foreign, case.agent])
    object.__setattr__(model, "endpoint", "rules:offline")
    await case.device.grant(case.mission)
    granted = await entries(case.book)
    await case.device.run_now(case.mission)
    with LEAVING.watch():
        await home.tick(lambda: model)
        await case.device.sync_now()
        await operations(case.device).runner.run_planned()
        await decide_somehow(case, random.Random(seed))
        await case.device.sync_now()
    await require_allowed(case, granted, elsewhere)
    assert LEAVING.seen == []
    assert all(ELSEWHERE not in str(request.messages) for request in model.requests)
    assert carried(await database_text(home.database.owner_url), SECRET) == []


async def test_what_the_person_set_does_happen(home: Household) -> None:
    """Where the person lets it, attacks change records, by themselves and approved, so the law says something."""
    by_itself = approved = 0
    for seed in range(20):
        case = await begin(home, PRESETS["aggressive"], frozenset(LIFTABLE), runs_on="device")
        before, elsewhere = await entries(case.book), await entries(case.other)
        model = HostileModel(seed)
        object.__setattr__(operations(case.device).opened, "model", model)
        await case.device.run_now(case.mission)
        by_itself += await require_allowed(case, before, elsewhere)
        for waiting in await case.device.inbox():
            with contextlib.suppress(ManaError):
                await case.device.approve(waiting.step_id)
                case.approved[waiting.step_id] = waiting
        approved += len(case.approved)
        await require_allowed(case, before, elsewhere)
        if by_itself and approved:
            break
    assert by_itself > 0
    assert approved > 0
