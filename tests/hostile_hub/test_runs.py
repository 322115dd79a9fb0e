"""A database that lies to an honest runner, and a hub that lies about grants, runs and the audit."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
import pytest

from mana.crypto.runners import RunnerPrivateKey
from mana.device.audit import row_hash
from mana.device.desk import Device
from mana.device.vaults import Wish
from mana.hub.runner.memory import JOURNAL_FILE, MEMORY_FILE
from mana.protocol.messages import AuditRow, Vault
from mana.testing.postgres import Cluster
from tests.device.household import operations
from tests.hostile_hub.tools import (
    AUDIT,
    GRANTS,
    RUNNER,
    STATE,
    VAULT,
    Body,
    Rows,
    Scene,
    book_of,
    code_of,
    planned_mission,
    scene_on,
)

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

ROWS: Final = (
    "mana.records",
    "mana.sync_changes",
    "mana.space_heads",
    "mana.spaces",
    "mana.memberships",
    "mana.membership_entries",
    "mana.devices",
    "mana_ai.grants",
    "mana_ai.mission_snapshots",
    "mana_ai.decrypt_audit",
    "mana_ai.audit_heads",
    "mana_ai.occurrences",
)


@dataclass
class Ran:
    """A scene in which a mission ran on the hub, under a grant of a zero-knowledge account."""

    scene: Scene
    mission: str
    grant: str
    rows: Rows
    memory: dict[Path, bytes | None]

    @property
    def ada(self) -> Device:
        return self.scene.ada

    @contextlib.asynccontextmanager
    async def afterwards_as_before(self) -> AsyncIterator[None]:
        """Put the database, the runner's memory and the truth back after a case."""
        try:
            yield
        finally:
            self.scene.mouth.honest()
            await self.rows.swap()
            for path, raw in self.memory.items():
                if raw is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(raw)

    async def run(self) -> tuple[str, str]:
        """Run the mission once more; return the state and the reason that the person is shown."""
        await book_of(self.ada).hub.run_mission(self.ada.space_id, self.mission)
        await self.scene.home.tick()
        operations(self.ada).news.moved()
        newest = (await self.ada.mission(self.mission)).runs[0]
        return newest.state, newest.reason


@pytest.fixture(scope="module")
async def ran(postgres: Cluster) -> AsyncIterator[Ran]:
    async with scene_on(postgres) as scene:
        mission, _, _ = await planned_mission(scene.ada)
        granted = await scene.ada.grant(mission)
        await scene.ada.run_now(mission)
        await scene.home.tick()
        for one in (scene.ada, scene.away, scene.ada):
            await one.sync_now()
        async with scene.put_back(*ROWS) as rows:
            files = [scene.home.folder / "secrets" / name for name in (MEMORY_FILE, JOURNAL_FILE)]
            memory = {path: path.read_bytes() if path.exists() else None for path in files}
            yield Ran(scene, mission, granted.grant_id, rows, memory)


NOBODY: Final = "A" * 86 + "=="
"""A signature that nobody made."""


async def changed(ran: Ran, column: str, value: str) -> None:
    await ran.scene.owner(
        f"update mana_ai.grants set {column} = $1 where grant_id = $2", value, ran.grant
    )


def column(name: str, value: str) -> Callable[[Ran], Awaitable[None]]:
    return lambda ran: changed(ran, name, value)


def header(**members: Any) -> Callable[[Ran], Awaitable[None]]:
    """Change what a grant says that it is for."""

    async def tamper(ran: Ran) -> None:
        (row,) = await ran.scene.owner(
            "select header from mana_ai.grants where grant_id = $1", ran.grant
        )
        wire = {**msgspec.json.decode(row["header"]), **members}
        await changed(ran, "header", msgspec.json.encode(wire, order="sorted").decode())

    return tamper


def sql(*statements: str) -> Callable[[Ran], Awaitable[None]]:
    async def tamper(ran: Ran) -> None:
        for statement in statements:
            await ran.scene.owner(
                statement.replace(":mission", f"'{ran.mission}'")
                .replace(":ada", f"'{ran.ada.account_id}'")
                .replace(":bob", f"'{ran.scene.bob.account_id}'")
                .replace(":device", f"'{book_of(ran.scene.bob).device_id}'")
            )

    return tamper


def plain(table: str, path: str, value: str) -> Callable[[Ran], Awaitable[None]]:
    return sql(
        f"update mana.records set fields = jsonb_set(fields::jsonb, '{{{path},value}}', '{value}')"
        f" where table_name = '{table}'"
    )


async def revoked_and_put_back(ran: Ran) -> None:
    await ran.scene.away.revoke(ran.grant)
    await ran.scene.home.tick()
    await ran.rows.swap()


async def audit_put_back(ran: Ran) -> None:
    """The newest readings are gone, with the head that named them."""
    await ran.scene.owner("delete from mana_ai.decrypt_audit where seq > 3")
    await ran.scene.owner(
        "update mana_ai.audit_heads h set seq = 3, hash ="
        " (select a.hash from mana_ai.decrypt_audit a"
        "   where a.account_id = h.account_id and a.seq = 3)"
    )


SECOND_KEY: Final = (
    "update mana.devices d set public_key = (select public_key from mana.devices"
    " where device_id = :device) where account_id = :ada"
)

TAMPERED: Final[dict[str, tuple[Callable[[Ran], Awaitable[None]], str]]] = {
    "a revoked grant, put back": (revoked_and_put_back, "revoked"),
    "a grant that nobody signed": (column("signature", NOBODY), "signature-rejected"),
    "a grant that this hub did not take": (column("hub_signature", NOBODY), "signature-rejected"),
    "other keys in the grant": (
        column("sealed_keys", "gk:2:AAAAAAAAAAAAAAAA.AAAA"),
        "signature-rejected",
    ),
    "no keys in the grant": (column("sealed_keys", ""), "signature-rejected"),
    "another wrapped key": (column("wrapped_key", "A" * 1_556 + "AAA="), "signature-rejected"),
    "a grant signed by another member": (
        sql("update mana_ai.grants set signer = :device"),
        "not-a-member",
    ),
    "a grant of more records": (
        header(recordIds=["notes:any"], tables=["notes"]),
        "signature-rejected",
    ),
    "a grant to another model": (
        header(endpoints=["https://hub.example", "rules:offline"]),
        "signature-rejected",
    ),
    "a grant of another account": (
        header(accountId="00000000-0000-4000-8000-000000000003"),
        "scope-mismatch",
    ),
    "a grant for another mission": (header(missionId="other"), "scope-mismatch"),
    "a grant that lives longer": (
        sql("update mana_ai.grants set expires_at = expires_at + interval '20 days'"),
        "scope-mismatch",
    ),
    "a mission with words of the hub's own": (
        plain("aiMissions", "timeZone", '"Asia/Tokyo"'),
        "signature-rejected",
    ),
    "an agent with another policy": (
        plain("agents", "policy", '"enc:2:s1:x.y"'),
        "signature-rejected",
    ),
    "a mission without a part": (
        sql(
            "update mana.records set fields = fields::jsonb - 'objective' where table_name = 'aiMissions'"
        ),
        "signature-rejected",
    ),
    "a mission without its proofs": (
        sql("update mana.records set proofs = '{}' where table_name = 'aiMissions'"),
        "signature-rejected",
    ),
    "devices with a key of somebody else": (sql(SECOND_KEY), "not-a-member"),
    "no devices": (sql("delete from mana.devices where account_id = :ada"), "not-a-member"),
    "a log of which an entry is changed": (
        sql(
            "update mana.membership_entries set entry ="
            " jsonb_set(entry::jsonb, '{createdAt}', '\"2020-01-01T00:00:00.000Z\"')"
        ),
        "signature-rejected",
    ),
    "an audit that was put back": (audit_put_back, "set-back"),
}


@pytest.mark.parametrize("name", TAMPERED)
async def test_an_honest_runner_opens_nothing_by_a_changed_database(ran: Ran, name: str) -> None:
    """Whatever the database says: without what a device signed nothing is opened, and the run says why."""
    tamper, reason = TAMPERED[name]
    async with ran.afterwards_as_before():
        await tamper(ran)
        assert await ran.run() == ("skipped", reason)
        rows = await ran.scene.owner(
            "select status from mana_ai.decrypt_audit where seq >"
            " (select max((p->>'seq')::int) from unnest($1::jsonb[]) p)",
            ran.rows.kept["mana_ai.decrypt_audit"],
        )
        assert [row["status"] for row in rows if row["status"] == "ok"] == []


# What the device is told of runs


def records(body: Body, table: str) -> list[Body]:
    found = [one for one in body["records"] if one["table"] == table]
    return sorted(found, key=lambda one: str(one["id"]))


def steps_mixed(ran: Ran, body: Body) -> None:
    one, two = records(body, "aiSteps")[:2]
    for name in ("intent", "preview", "sentence", "binding"):
        one["fields"][name], two["fields"][name] = two["fields"][name], one["fields"][name]


def step_of_then(ran: Ran, body: Body) -> None:
    """The values of another step, under the ids of this one's change."""
    one, two = records(body, "aiSteps")[:2]
    one["fields"]["intent"]["value"] = two["fields"]["intent"]["value"]


def step_withheld(ran: Ran, body: Body) -> None:
    body["records"].remove(records(body, "aiSteps")[0])


def steps_fewer(ran: Ran, body: Body) -> None:
    records(body, "aiIterations")[0]["fields"]["stepIds"]["value"].pop()


def steps_more(ran: Ran, body: Body) -> None:
    named = records(body, "aiIterations")[0]["fields"]["stepIds"]["value"]
    named.append(named[0][:-1] + "9")


def proof(**members: Any) -> Callable[[Ran, Body], None]:
    def lie(ran: Ran, body: Body) -> None:
        records(body, "aiIterations")[0]["fields"]["proof"]["value"].update(members)

    return lie


def of_another_mission(ran: Ran, body: Body) -> None:
    records(body, "aiIterations")[0]["fields"]["missionId"]["value"] = "other"


def by_a_device(ran: Ran, body: Body) -> None:
    records(body, "aiIterations")[0]["fields"]["source"]["value"] = "device"


def by_another_agent(ran: Ran, body: Body) -> None:
    for one in records(body, "aiSteps"):
        for each in one["fields"].values():
            each["actor"]["principalId"] = "agent-of-the-hub"


RunLie: TypeAlias = Callable[[Ran, Body], None]
RUNS: Final[dict[str, RunLie]] = {
    "steps of one run mixed": steps_mixed,
    "the intent of another step": step_of_then,
    "a step withheld": step_withheld,
    "fewer steps named": steps_fewer,
    "more steps named": steps_more,
    "another signature": proof(signature=NOBODY),
    "another runner": proof(keyId="0" * 64),
    "another grant": proof(grantId="00000000-0000-4000-8000-000000000004"),
    "another fence": proof(fence=9),
    "another audit": proof(auditSeq=1, auditHash="0" * 64),
    "another moment": proof(scheduledFor="2027-01-01T00:00:00.000Z"),
    "another mission": of_another_mission,
    "a device's, by nobody": by_a_device,
    "another agent": by_another_agent,
}


@pytest.mark.parametrize("name", RUNS)
async def test_a_run_of_the_hubs_can_only_be_rejected(ran: Ran, name: str) -> None:
    """A run of which anything is not the granted runner's is shown so, and cannot be approved."""
    place, mouth = ran.scene.newcomer()

    def change(body: Body) -> Body:
        if records(body, "aiSteps"):
            RUNS[name](ran, body)
        return body

    mouth.lie(STATE, change)
    code, device = await ran.scene.signs_in(place)
    assert (code, bool(mouth.told)) == ("", True)
    assert device is not None
    waiting = await device.inbox()
    assert waiting
    assert [one.verified for one in waiting] == [False] * len(waiting)
    assert all(one.trouble for one in waiting)
    for one in waiting:
        assert await code_of(device.approve(one.step_id)) == "PROPOSAL_UNVERIFIED"


async def test_no_step_is_carried_out_by_a_status_of_the_hubs(ran: Ran) -> None:
    """A proposal that the hub calls planned is not executed: whether it may is sealed in it."""
    place, mouth = ran.scene.newcomer()

    def change(body: Body) -> Body:
        for one in records(body, "aiSteps"):
            one["fields"]["status"]["value"] = "planned"
        return body

    mouth.lie(STATE, change)
    code, device = await ran.scene.signs_in(place)
    assert (code, bool(mouth.told)) == ("", True)
    assert device is not None
    before = await device.list("tasks")
    await operations(device).runner.work(expire=False)
    assert await device.list("tasks") == before
    assert await device.timeline() is not None


# What it is told of grants and the runner


def of_grant(**members: Any) -> Callable[[Ran, Body], None]:
    def lie(ran: Ran, body: Body) -> None:
        (one,) = [each for each in body["grants"] if each["header"]["grantId"] == ran.grant]
        one.update(members)

    return lie


def wider(ran: Ran, body: Body) -> None:
    body["grants"][0]["header"]["recordIds"].append("tasks:zzz")


def for_the_hub(ran: Ran, body: Body) -> None:
    body["grants"][0]["header"]["runnerKeyId"] = "0" * 64


def signed_by_bob(ran: Ran, body: Body) -> None:
    body["grants"][0]["signature"]["signer"] = book_of(ran.scene.bob).device_id


GRANTED: Final[dict[str, RunLie]] = {
    "another signature": lambda ran, body: body["grants"][0]["signature"].update(value=NOBODY),
    "another signer": signed_by_bob,
    "other keys": of_grant(sealedKeysHash="0" * 64),
    "another wrap": of_grant(wrappedKeyHash="0" * 64),
    "more records": wider,
    "another runner": for_the_hub,
}


@pytest.mark.parametrize("name", GRANTED)
async def test_a_grant_that_nobody_gave_is_shown_as_such(ran: Ran, name: str) -> None:
    """A grant of which a part is the hub's is listed as unverified."""
    scene = ran.scene
    scene.mouth.lie(GRANTS, lambda body: _told(ran, GRANTED[name], body))
    operations(ran.ada).news.moved()
    try:
        assert [one.state for one in await ran.ada.grants()] == ["unverified"]
    finally:
        scene.mouth.honest()
        operations(ran.ada).news.moved()
    assert [one.state for one in await ran.ada.grants()] == ["active"]


def _told(ran: Ran, lie: RunLie, body: Body) -> Body:
    lie(ran, body)
    return body


def another_runner(body: Body) -> Body:
    key = RunnerPrivateKey.generate().public()
    return {
        **body,
        "keyId": key.key_id(),
        "fingerprint": key.fingerprint(),
        "publicKey": key.to_pem(),
    }


async def test_a_runner_of_the_hubs_own_gets_nothing_without_a_word(ran: Ran) -> None:
    """A runner whose key no known one has signed is a new one, and is granted to by consent alone."""
    scene, made = ran.scene, another_runner(scene_runner(ran))
    signed = {
        **made,
        "succeeds": [{"keyId": "0" * 64, "publicKey": made["publicKey"], "signature": NOBODY}],
    }
    for body in (made, signed):
        scene.mouth.lie(RUNNER, lambda _body, told=body: told)  # type: ignore[misc]
        operations(ran.ada).news.moved()
        asked = len(_completed(ran))
        said = await ran.ada.consent(ran.mission)
        assert said.runner_fingerprint == made["fingerprint"]
        assert any("not the runner of your earlier grants" in line for line in said.lines)
        assert await code_of(ran.ada.grant(ran.mission)) == "GRANT_HEADER_REFUSED"
        assert len(_completed(ran)) == asked
        scene.mouth.honest()
    operations(ran.ada).news.moved()


def scene_runner(ran: Ran) -> Body:
    return ran.scene.mouth.last(RUNNER)


# What it is told of the audit


def audit_row_gone(body: Body) -> None:
    del body["rows"][2]


def audit_newest_gone(body: Body) -> None:
    newest = body["rows"].pop(0)
    body["headSeq"], body["headHash"] = newest["seq"] - 1, newest["previous"]


def audit_changed(body: Body) -> None:
    body["rows"][1]["recordId"] = "other"


def audit_swapped(body: Body) -> None:
    body["rows"][1], body["rows"][2] = body["rows"][2], body["rows"][1]


def audit_emptied(body: Body) -> None:
    body["rows"], body["headSeq"], body["headHash"] = [], 0, "0" * 64


def audit_written_anew(body: Body) -> None:
    """A whole chain of the hub's own, every hash of which is right."""
    previous = "0" * 64
    for row in reversed(body["rows"]):
        row["recordId"], row["previous"] = "harmless", previous
        read = msgspec.convert(row, AuditRow)
        row["hash"] = previous = row_hash(read)
    body["headHash"] = previous


AUDITS: Final[dict[str, Callable[[Body], None]]] = {
    "a reading is missing": audit_row_gone,
    "the newest reading is missing": audit_newest_gone,
    "a reading is changed": audit_changed,
    "readings in another order": audit_swapped,
    "no readings": audit_emptied,
    "another chain": audit_written_anew,
}


@pytest.mark.parametrize(
    ("name", "new"),
    # A device that walked the chain before knows each reading by its place.
    [
        (name, new)
        for name in AUDITS
        for new in (False, True)
        if new or name != "readings in another order"
    ],
)
async def test_an_audit_that_is_not_the_runners_is_told(ran: Ran, name: str, new: bool) -> None:
    """Readings that are missing, changed or another's are said on the page, at a new device too."""
    mouth, device = ran.scene.mouth, ran.ada
    if new:
        place, mouth = ran.scene.newcomer()
        _, found = await ran.scene.signs_in(place)
        assert found is not None
        device = found

    def change(body: Body) -> Body:
        if body["rows"]:
            AUDITS[name](body)
        return body

    mouth.lie(AUDIT, change)
    try:
        shown = await device.data_access()
        assert mouth.told
        assert (shown.chain_ok, bool(shown.chain_words)) == (False, True)
    finally:
        mouth.honest()
    assert (await device.data_access()).chain_ok


async def test_a_device_grants_nothing_that_its_vault_does_not_allow(ran: Ran) -> None:
    """A hub that takes grants although the person switched them off is given none."""
    scene, keeper = ran.scene, book_of(ran.ada).inner().keeper

    async def allow(grants: bool) -> None:
        async def wish(_standing: Vault) -> Wish:
            return Wish(grants=grants)

        await keeper.change(wish)

    async with ran.afterwards_as_before():
        await ran.ada.consent(ran.mission)
        await allow(False)
        await scene.owner("update mana.accounts set grants = true")
        await ran.rows.swap()
        scene.mouth.lie(VAULT, lambda body: {**body, "grants": False})
        operations(ran.ada).news.moved()
        asked = len(_completed(ran))
        assert await code_of(ran.ada.consent(ran.mission)) == "ZK_ACTIVE"
        assert await code_of(ran.ada.grant(ran.mission)) == "ZK_ACTIVE"
        assert await operations(ran.ada).grants.mint_anew() == 0
        assert len(_completed(ran)) == asked
    await scene.owner(
        "update mana.accounts set grants = false where account_id = $1", ran.ada.account_id
    )
    await allow(True)


def _completed(ran: Ran) -> list[str]:
    """Return where keys of grants were sent to."""
    return [path for path, _ in ran.scene.mouth.asked if path.endswith("/complete")]


async def test_a_revoked_grant_is_not_shown_as_one_in_force(ran: Ran) -> None:
    """A hub that goes on listing a grant as active, without the word that it ended, is seen."""
    async with ran.afterwards_as_before():
        await ran.ada.revoke(ran.grant)

        def change(body: Body) -> Body:
            of_grant(state="active")(ran, body)
            for one in body["grants"]:
                one.pop("revocation", None)
                one.pop("endedAt", None)
            return body

        ran.scene.mouth.lie(GRANTS, change)
        operations(ran.ada).news.moved()
        (shown,) = await ran.ada.grants()
        assert (shown.state, ran.scene.mouth.told > 0) == ("stale", True)
        assert shown.stale_reason
