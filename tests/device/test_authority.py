"""What a device obeys: only what a member's device or the granted runner signed, and all of it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import httpx
import msgspec
import pytest

from mana.crypto.authority import (
    Authority,
    NotAMember,
    SignerRevoked,
    SignerUnknown,
    authority_among,
    authority_of,
    facts_of,
    verify_log,
    verify_record,
)
from mana.crypto.errors import SignatureRejected
from mana.crypto.identity import PrivateIdentity, certify_device, revoke_device
from mana.crypto.keys import mission_key
from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPrivateKey
from mana.crypto.signatures import (
    ChangeFacts,
    SigningKey,
    sign_change,
    sign_reseal,
    value_hash,
)
from mana.device.authority import verify_run
from mana.domain.agents import AGENTS
from mana.domain.clock import iso_ms, parse_iso_ms
from mana.domain.encoding import Json
from mana.domain.errors import ManaError
from mana.domain.grants import GrantHeader
from mana.domain.ids import IterationId, MissionId, iteration_id, step_id
from mana.domain.iterations import ITERATIONS, STEPS
from mana.domain.spaces import Role, entry_from_wire
from mana.hub.runner.opening import GrantedKey, MissionKey
from mana.hub.runner.writeback import Draft, RunFacts, seal_run
from mana.protocol.messages import (
    ChangeMessage,
    DeviceCertificate,
    DeviceRevocation,
    FieldWrite,
    Proof,
    Signature,
)
from mana.protocol.replication import Held, apply_change
from mana.testing.accounts import NewAccount, new_account, new_device, sealed_change, signed
from mana.testing.postgres import Database
from mana.testing.spaces import member_of
from tests.device.rig import Rig, rig_on, write
from tests.hub.client import START_MS

MOMENT = "2026-11-18T05:20:00.000Z"
MISSION = "mission-1"
AGENT = "agent-1"


@cache
def ada() -> NewAccount:
    return new_account("ada", now_ms=START_MS)


@cache
def runner() -> RunnerPrivateKey:
    return RunnerPrivateKey.generate()


def authority(account: NewAccount) -> Authority:
    return authority_of(
        account.personal.space_id, [account.personal.new.first], [account.certificate]
    )


def guarded(table: str, path: str) -> bool:
    return table == STEPS.name and path in ("status", "claimedBy")


def held(*changes: ChangeMessage) -> Held:
    found: Held | None = None
    for seq, change in enumerate(changes, 1):
        found = apply_change(found, change, seq=seq, guarded=guarded)
    assert found is not None
    return found


def agent_change(counter: int = 0, **values: Json) -> ChangeMessage:
    return sealed_change(ada(), AGENTS, AGENT, values, now_ms=START_MS, counter=counter)


def test_a_record_of_signed_changes_is_obeyed() -> None:
    """A record whose paths stem from several signed changes verifies as a whole."""
    record = held(agent_change(0, name="Mira", state="active"), agent_change(1, state="paused"))
    verify_record(authority(ada()), record, AGENTS)


@pytest.mark.parametrize("lie", ["value", "older", "withheld", "unsigned", "actor", "place"])
def test_a_record_that_was_tampered_with_is_not_obeyed(lie: str) -> None:
    """Another value, an older one, a missing one, an unsigned one, another actor or record."""
    first = agent_change(0, name="Mira", state="active")
    second = agent_change(1, name="Vera", state="paused")
    record = held(first, second)
    entries = dict(record.record.entries)
    if lie == "value":
        entries["state"] = replace(entries["state"], value="active")
    if lie == "older":
        record = replace(record, proofs={**record.proofs, **held(first).proofs})
        entries["state"] = held(first).record.entries["state"]
    if lie == "withheld":
        del entries["state"]
    if lie == "unsigned":
        record = replace(record, proofs={})
    if lie == "actor":
        actor = replace(entries["state"].actor, principal_id="somebody")
        entries["state"] = replace(entries["state"], actor=actor)
    tampered = replace(record, record=replace(record.record, entries=entries))
    if lie == "place":
        tampered = replace(tampered, record=replace(tampered.record, id="agent-2"))
    with pytest.raises(SignatureRejected):
        verify_record(authority(ada()), tampered, AGENTS)


def test_a_stranger_decides_nothing() -> None:
    """A device that no member certified, and a certificate by another account, count nothing."""
    eve = new_account("eve", now_ms=START_MS)
    by_eve = signed(eve, ada().personal.space_id, agent_change(0, state="active"))
    with pytest.raises(SignerUnknown):
        verify_record(authority(ada()), held(by_eve), AGENTS)
    forged = msgspec.structs.replace(eve.certificate, account_id=ada().account_id)
    of_ada = authority_of(ada().personal.space_id, [ada().personal.new.first], [forged])
    assert dict(of_ada.devices) == {}


def test_a_second_device_of_a_member_decides() -> None:
    """A device that the member certified later signs as well as the first."""
    device_id, key, certificate = new_device(ada().identity, now_ms=START_MS)
    other = replace(ada(), device_id=device_id, device_key=key, certificate=certificate)
    change = sealed_change(other, AGENTS, AGENT, {"state": "active"}, now_ms=START_MS)
    with pytest.raises(SignerUnknown):
        verify_record(authority(ada()), held(change), AGENTS)
    verify_record(authority(other), held(change), AGENTS)


@cache
def bo() -> NewAccount:
    return new_account("bo", now_ms=START_MS)


def both(role: Role = "member") -> Authority:
    """Return who decides in Ada's space if Bo is in it too."""
    members = (member_of(ada(), "owner"), member_of(bo(), role))
    certificates = [ada().certificate, bo().certificate]
    return authority_among(ada().personal.space_id, members, certificates)


def resealed(
    change: ChangeMessage,
    by: NewAccount,
    *paths: str,
    sign: Callable[[SigningKey, ChangeFacts], bytes] = sign_reseal,
    **values: Json,
) -> ChangeMessage:
    """Return Bo's re-seal of paths of a change: other envelopes, and all else as it stands."""
    fields = {
        path: FieldWrite(value=values.get(path, f"enc:2:s2:{path}"), at=change.fields[path].at)
        for path in paths
    }
    draft = msgspec.structs.replace(
        change, change_id=str(uuid.uuid4()), op="reseal", fields=fields, signature=None
    )
    value = b64(sign(by.device_key, facts_of(ada().personal.space_id, draft)))
    signature = Signature(signer=by.device_id, value=value)
    return msgspec.structs.replace(draft, signature=signature)


def after_reseal(change: ChangeMessage, again: ChangeMessage) -> Held:
    """Return the record as the hub keeps it after a re-seal, whatever it should have refused."""
    before = held(change)
    entries = dict(before.record.entries)
    for path, one in again.fields.items():
        entries[path] = replace(entries[path], value=one.value, change_id=again.change_id)
    assert again.signature is not None
    proof = Proof(
        signature=again.signature,
        actor=again.actor,
        origin=again.origin,
        entries={path: [one.at, value_hash(one.value)] for path, one in again.fields.items()},
        reseal=again.op == "reseal",
    )
    return replace(
        before,
        record=replace(before.record, entries=entries),
        proofs={**before.proofs, again.change_id: proof},
    )


def test_a_member_vouches_for_a_value_under_a_new_key() -> None:
    """Ada's words under a newer key count by Bo's hand, and her own proof stands beside it."""
    change = agent_change(0, name="Mira", state="active")
    record = after_reseal(change, resealed(change, bo(), "name"))
    verify_record(both(), record, AGENTS)
    with pytest.raises(NotAMember):
        verify_record(both("viewer"), record, AGENTS)
    with pytest.raises(SignerUnknown):
        verify_record(authority(ada()), record, AGENTS)


LATER = iso_ms(START_MS + 60_000)
"""When a device is revoked in these tests; what stands was signed a minute before."""


def revocation(
    account: NewAccount,
    at: str = LATER,
    *,
    by: PrivateIdentity | None = None,
    device_id: str | None = None,
) -> DeviceRevocation:
    identity = by or account.identity
    signed_ = revoke_device(
        identity.signing_key, account.account_id, device_id or account.device_id, at
    )
    return DeviceRevocation(
        account_id=signed_.account_id,
        device_id=signed_.device_id,
        revoked_at=signed_.revoked_at,
        signature=b64(signed_.signature),
    )


def after(*revocations: DeviceRevocation) -> Authority:
    """Return who decides in Ada's space, where Bo is too, after these revocations."""
    members = (member_of(ada(), "owner"), member_of(bo(), "member"))
    certificates = [ada().certificate, bo().certificate]
    return authority_among(ada().personal.space_id, members, certificates, revocations)


def test_a_revoked_device_counts_for_what_it_said_before() -> None:
    """Proofs with earlier stamps alone stand; one with a stamp of then or later decides nothing."""
    early = held(agent_change(0, name="Mira", state="active"))
    late = held(sealed_change(ada(), AGENTS, AGENT, {"state": "paused"}, now_ms=START_MS + 60_000))
    verify_record(after(revocation(ada())), early, AGENTS)
    with pytest.raises(SignerRevoked):
        verify_record(after(revocation(ada())), late, AGENTS)
    with pytest.raises(SignerRevoked):
        verify_record(after(revocation(ada(), iso_ms(START_MS))), early, AGENTS)
    with pytest.raises(SignerRevoked):
        after(revocation(ada())).writer(ada().device_id)
    verify_record(after(), late, AGENTS)


def test_a_device_is_revoked_by_its_own_account() -> None:
    """No other member, no forger and no malformed word takes a device off; the earliest counts."""
    record = held(agent_change(0, state="active"))
    at = iso_ms(START_MS)
    by_bo = revocation(bo(), at, device_id=ada().device_id)
    forged = revocation(ada(), at, by=bo().identity)
    good = revocation(ada(), at)
    for lie in (
        by_bo,
        forged,
        msgspec.structs.replace(good, revoked_at="2020-01-01T00:00:00.000Z"),
        msgspec.structs.replace(good, version="v2"),
        revocation(ada(), "soon"),
        msgspec.structs.replace(good, signature="?"),
    ):
        verify_record(after(lie), record, AGENTS)
    for both_ in ((good, revocation(ada())), (revocation(ada()), good)):
        with pytest.raises(SignerRevoked):
            verify_record(after(*both_), record, AGENTS)


def moved(*certificates: DeviceCertificate, revoked: Sequence[DeviceRevocation] = ()) -> Authority:
    """Return who decides in Ada's space once its log names her new identity."""
    first = entry_from_wire(ada().personal.new.first.entry)
    now = member_of(replace(ada(), identity=new_identity()), "owner")
    entries = (first, replace(first, members=(now,)))
    return authority_among(ada().personal.space_id, (now,), certificates, revoked, entries=entries)


@cache
def new_identity() -> PrivateIdentity:
    return PrivateIdentity.generate(ada().account_id)


def certified(by: PrivateIdentity) -> DeviceCertificate:
    """Return Ada's device, certified by another identity."""
    key = ada().device_key.public()
    made = certify_device(
        by.signing_key, ada().account_id, ada().device_id, key, ada().certificate.created_at
    )
    return msgspec.convert(made.to_wire(), DeviceCertificate)


def test_while_an_identity_moves_each_log_takes_the_certificate_by_its_own() -> None:
    """With both certificates a device decides before the log follows and after; with one, there."""
    record = held(agent_change(0, state="active"))
    old, new = ada().certificate, certified(new_identity())
    space, first = ada().personal.space_id, [ada().personal.new.first]
    for order in ([old, new], [new, old]):
        verify_record(authority_of(space, first, order), record, AGENTS)
        verify_record(moved(*order), record, AGENTS)
    with pytest.raises(SignerUnknown):
        verify_record(authority_of(space, first, [new]), record, AGENTS)
    with pytest.raises(SignerUnknown):
        verify_record(moved(old), record, AGENTS)


def test_a_former_identity_takes_devices_off_and_puts_none_on() -> None:
    """What the identity before revoked stays revoked; nothing that it alone certified counts."""
    record = held(agent_change(0, state="active"))
    old, new = ada().certificate, certified(new_identity())
    before = revocation(ada(), iso_ms(START_MS))
    with pytest.raises(SignerRevoked):
        verify_record(moved(new, revoked=[before]), record, AGENTS)
    with pytest.raises(SignerUnknown):
        verify_record(moved(old, revoked=[revocation(ada())]), record, AGENTS)
    anew = revocation(ada(), by=new_identity())
    verify_record(moved(old, revoked=[anew]), record, AGENTS)
    late = held(sealed_change(ada(), AGENTS, AGENT, {"state": "paused"}, now_ms=START_MS + 60_000))
    with pytest.raises(SignerRevoked):
        verify_record(moved(old, revoked=[anew]), late, AGENTS)


def test_a_re_seal_carries_no_decision() -> None:
    """A state, a cleared field or another purpose under a re-seal is not obeyed."""
    change = agent_change(0, name="Mira", state="active")
    for again in (
        resealed(change, bo(), "state", state="paused"),
        resealed(change, bo(), "name", "state", state="active"),
        resealed(change, bo(), "name", name=None),
        resealed(change, bo(), "name", sign=sign_change),
        msgspec.structs.replace(resealed(change, bo(), "name"), op="update"),
        msgspec.structs.replace(resealed(change, ada(), "name"), op="update"),
    ):
        with pytest.raises(SignatureRejected):
            verify_record(both(), after_reseal(change, again), AGENTS)


def test_a_membership_log_must_be_the_space_s_own() -> None:
    """A log of another space, an empty one and a changed one are refused."""
    eve = new_account("eve", now_ms=START_MS)
    with pytest.raises(SignatureRejected):
        verify_log(ada().personal.space_id, [eve.personal.new.first])
    with pytest.raises(ManaError):
        verify_log(ada().personal.space_id, [])
    first = ada().personal.new.first
    changed = msgspec.structs.replace(first, entry={**first.entry, "nonce": "0" * 32})
    with pytest.raises(SignatureRejected):
        verify_log(ada().personal.space_id, [changed])


def test_a_decision_of_an_older_clock_withholds_nothing() -> None:
    """A guarded value that the hub put later may bear an older stamp, and the record holds."""
    plan: dict[str, Json] = {
        "missionId": MISSION,
        "iterationId": "i1",
        "index": 0,
        "status": "staged",
    }
    made = sealed_change(ada(), STEPS, "s1", plan, now_ms=START_MS, guards={"status": None})
    decided = sealed_change(
        ada(),
        STEPS,
        "s1",
        {"status": "approved"},
        now_ms=START_MS - 60_000,
        guards={"status": "staged"},
        context=plan,
    )
    record = held(made, decided)
    assert record.record.entries["status"].value == "approved"
    verify_record(authority(ada()), record, STEPS)


class Run:
    """A run as the runner writes it, held by a device."""

    def __init__(self) -> None:
        account = ada()
        self.id = iteration_id(MissionId(MISSION), MOMENT)
        steps = [step_id(IterationId(self.id), index) for index in range(2)]
        facts = RunFacts(
            space_id=account.personal.space_id,
            mission_id=MISSION,
            agent_id=AGENT,
            account_id=account.account_id,
            iteration_id=self.id,
            scheduled_for=MOMENT,
            grant_id=GRANT,
            fence=3,
            now_ms=START_MS,
            audit_seq=7,
            audit_hash="0" * 64,
        )
        iteration: dict[str, Json] = {
            "missionId": MISSION,
            "scheduledFor": MOMENT,
            "source": "hub",
            "stepIds": list(steps),
            "summary": "done",
        }
        drafts = [
            Draft(
                STEPS,
                step,
                {
                    "missionId": MISSION,
                    "iterationId": self.id,
                    "index": index,
                    "status": "staged",
                    "sentence": "Add a note",
                },
            )
            for index, step in enumerate(steps)
        ]
        key = GrantedKey(mission_key(account.personal.space_key, MISSION), "m1")
        self.changes = seal_run(
            facts,
            Draft(ITERATIONS, self.id, iteration),
            drafts,
            iteration_key=MissionKey.of(key),
            runner=runner(),
        )
        self.iteration = held(self.changes[0])
        self.steps = [held(change) for change in self.changes[1:]]
        self.header = GrantHeader(
            grant_id=GRANT,
            account_id=account.account_id,
            space_id=account.personal.space_id,
            mission_id=MISSION,
            agent_id=AGENT,
            tables=("notes",),
            record_ids=("notes:n1",),
            endpoints=("rules",),
            issued_at="2026-11-18T05:00:00.000Z",
            expires_at="2026-11-19T05:00:00.000Z",
            suite="hpke-mlkem768-x25519",
            runner_key_id=runner().public().key_id(),
        )

    def verify(self, by: Authority | None = None) -> None:
        verify_run(
            by or authority(ada()),
            self.iteration,
            self.steps,
            header=self.header,
            runner=runner().public(),
        )


GRANT = "00000000-0000-4000-8000-000000000001"


def test_a_run_of_the_granted_runner_is_obeyed() -> None:
    """Iteration and steps as the runner wrote them verify, also after a device decided."""
    run = Run()
    run.verify()
    decision: dict[str, Json] = {"status": "approved", "decidedAt": MOMENT}
    step = run.changes[1]
    decided = sealed_change(
        ada(),
        STEPS,
        step.id,
        decision,
        now_ms=START_MS,
        guards={"status": "staged"},
        context={"missionId": MISSION},
    )
    run.steps[0] = held(step, decided)
    run.verify()


def decided_by_bo(run: Run, *, now_ms: int) -> None:
    """Let Bo approve the first step."""
    decided = sealed_change(
        bo(),
        STEPS,
        run.changes[1].id,
        {"status": "approved", "decidedAt": MOMENT},
        now_ms=now_ms,
        space=ada().personal,
        guards={"status": "staged"},
        context={"missionId": MISSION},
        author_id=ada().account_id,
    )
    run.steps[0] = held(run.changes[1], decided)


def since_bo(became: Role | None, *revocations: DeviceRevocation) -> Authority:
    """Return who decides in Ada's space after Bo, a member, left it or got another role, at
    `LATER`."""
    first = entry_from_wire(ada().personal.new.first.entry)
    owner = member_of(ada(), "owner")
    now = (owner,) if became is None else (owner, member_of(bo(), became))
    entries = (
        first,
        replace(first, members=(owner, member_of(bo(), "member"))),
        replace(first, members=now, created_at=LATER),
    )
    certificates = [ada().certificate, bo().certificate]
    space = ada().personal.space_id
    return authority_among(space, now, certificates, revocations, entries=entries)


@pytest.mark.parametrize("became", [None, "viewer"])
def test_what_a_member_decided_stays_decided(became: Role | None) -> None:
    """A run keeps its proof when whoever decided a step of it leaves or may only read; what they
    signed at that moment or later, or by a device that was revoked before, decides nothing."""
    run = Run()
    decided_by_bo(run, now_ms=START_MS)
    run.verify(since_bo(became))
    with pytest.raises(SignerRevoked):
        run.verify(since_bo(became, revocation(bo(), iso_ms(START_MS))))
    for now_ms in (parse_iso_ms(LATER), parse_iso_ms(LATER) + 60_000):
        decided_by_bo(run, now_ms=now_ms)
        with pytest.raises(NotAMember):
            run.verify(since_bo(became))
        run.verify(since_bo("member"))


def without_bo(author: NewAccount, *moments: str) -> Authority:
    """Return who decides in Ada's space after an entry at the first moment took Bo off, and entries
    by Ada at the others."""
    first = entry_from_wire(ada().personal.new.first.entry)
    owner = member_of(ada(), "owner")
    entries = [first, replace(first, members=(owner, member_of(bo(), "member")))]
    entries.append(
        replace(first, members=(owner,), author_id=author.account_id, created_at=moments[0])
    )
    entries += [replace(first, members=(owner,), created_at=at) for at in moments[1:]]
    certificates = [ada().certificate, bo().certificate]
    return authority_among(ada().personal.space_id, (owner,), certificates, entries=entries)


def test_who_has_left_decides_nothing_of_what_came_after() -> None:
    """Neither an earlier stamp nor a late or senseless word on when they left lets them decide what
    was due since."""
    run, due_ms = Run(), parse_iso_ms(MOMENT)
    minute_ms = 60_000
    decided_by_bo(run, now_ms=due_ms - 2 * minute_ms)
    before, late = iso_ms(due_ms - minute_ms), "9999-12-31T23:59:59.999Z"
    run.verify(without_bo(ada(), iso_ms(due_ms + 1)))
    run.verify(without_bo(bo(), iso_ms(due_ms + 1), late))
    for author, moments in (
        (ada(), (before,)),
        (ada(), (MOMENT,)),
        (bo(), (late, before)),
        (bo(), ("zero",)),
        (ada(), ("zero", late)),
    ):
        with pytest.raises(NotAMember):
            run.verify(without_bo(author, *moments))


def test_what_goes_on_ends_with_its_member() -> None:
    """An agent that somebody wrote who has left is obeyed no more: it would act for nobody here."""
    change = sealed_change(
        bo(), AGENTS, AGENT, {"state": "active"}, now_ms=START_MS, space=ada().personal
    )
    verify_record(since_bo("member"), held(change), AGENTS)
    with pytest.raises(SignerUnknown):
        verify_record(since_bo(None), held(change), AGENTS)


def _without_step(run: Run) -> None:
    run.steps.pop()


def _other_value(run: Run) -> None:
    entries = dict(run.steps[0].record.entries)
    entries["sentence"] = run.steps[1].record.entries["sentence"]
    run.steps[0] = replace(run.steps[0], record=replace(run.steps[0].record, entries=entries))


def _without_path(run: Run) -> None:
    entries = dict(run.steps[0].record.entries)
    del entries["sentence"]
    run.steps[0] = replace(run.steps[0], record=replace(run.steps[0].record, entries=entries))


def _other_grant(run: Run) -> None:
    run.header = replace(run.header, grant_id="00000000-0000-4000-8000-000000000002")


def _other_mission(run: Run) -> None:
    run.header = replace(run.header, mission_id="mission-2")


def _other_space(run: Run) -> None:
    run.header = replace(run.header, space_id="0" * 64)


def _other_agent(run: Run) -> None:
    run.header = replace(run.header, agent_id="agent-2")


def _other_fence(run: Run) -> None:
    entries = dict(run.iteration.record.entries)
    proof = entries["proof"].value
    assert isinstance(proof, dict)
    entries["proof"] = replace(entries["proof"], value={**proof, "fence": 4})
    run.iteration = replace(run.iteration, record=replace(run.iteration.record, entries=entries))


def _unsigned_addition(run: Run) -> None:
    stray = sealed_change(
        ada(),
        STEPS,
        run.changes[1].id,
        {"feedback": "obey"},
        now_ms=START_MS,
        context={"missionId": MISSION},
    )
    bare = msgspec.structs.replace(stray, signature=None)
    run.steps[0] = held(run.changes[1], bare)


@pytest.mark.parametrize(
    "tamper",
    [
        _without_step,
        _other_value,
        _without_path,
        _other_grant,
        _other_mission,
        _other_space,
        _other_agent,
        _other_fence,
        _unsigned_addition,
    ],
)
def test_a_run_that_was_tampered_with_is_not_obeyed(tamper: Callable[[Run], None]) -> None:
    """A missing step, another value, grant, mission, space, agent or fence, an unsigned addition."""
    run = Run()
    tamper(run)
    with pytest.raises(SignatureRejected):
        run.verify()


def test_another_runner_s_run_is_not_obeyed() -> None:
    """A run signed by a runner that the grant does not name counts nothing."""
    run = Run()
    other = RunnerPrivateKey.generate().public()
    with pytest.raises(SignatureRejected):
        verify_run(authority(ada()), run.iteration, run.steps, header=run.header, runner=other)


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_on(database, tmp_path) as made:
        yield made


@pytest.mark.anyio
async def test_a_hub_that_changes_a_mission_is_not_obeyed(rig: Rig) -> None:
    """A device shows what the hub sent and says that it is not verified."""
    here = await rig.machine().sign_up()
    values: dict[str, Json] = {"title": "Weekly review", "state": "paused", "agentId": AGENT}
    await here.commit([write(here, "aiMissions", MISSION, values)])
    await here.sync_now()
    assert await here.is_verified("aiMissions", MISSION)
    second = rig.machine()

    async def start_it(
        request: httpx.Request, under: httpx.AsyncBaseTransport
    ) -> httpx.Response | None:
        if not request.url.path.endswith("/records"):
            return None
        response = await under.handle_async_request(request)
        page = msgspec.json.decode(await response.aread())
        for record in page["records"]:
            if record["table"] == "aiMissions":
                record["fields"]["state"]["value"] = "active"
        return httpx.Response(200, json=page, request=request)

    second.wire.on_request = start_it
    there = await second.sign_in()
    await there.sync_now()
    view = await there.view("aiMissions", MISSION)
    assert view is not None
    assert view.values["state"] == "active"
    assert not await there.is_verified("aiMissions", MISSION)
    assert await there.proofs("aiMissions", MISSION)


@pytest.mark.anyio
async def test_a_device_s_own_run_is_obeyed_on_the_other(rig: Rig) -> None:
    """A run that a device wrote and signed verifies on the person's other device."""
    here = await rig.machine().sign_up()
    run = iteration_id(MissionId(MISSION), MOMENT)
    step = step_id(IterationId(run), 0)
    iteration: dict[str, Json] = {
        "missionId": MISSION,
        "scheduledFor": MOMENT,
        "source": "device",
        "stepIds": [step],
        "summary": "done",
    }
    planned: dict[str, Json] = {
        "missionId": MISSION,
        "iterationId": run,
        "index": 0,
        "status": "staged",
        "sentence": "Add a note",
    }
    await here.commit(
        [
            write(here, "aiIterations", run, iteration),
            write(here, "aiSteps", step, planned, guards={"status": None}),
        ]
    )
    await here.sync_now()
    assert (await here.status()).refused == 0
    there = await rig.machine().sign_in()
    await there.sync_now()
    assert await there.iteration_verified(run, headers={}, runners={}) == (True, "")
    assert await there.iteration_verified("none", headers={}, runners={}) == (False, "missing")
