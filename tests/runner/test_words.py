"""What was signed decides: caps of an account and lifts of a space, whatever the database says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from mana.crypto.signatures import SigningKey
from mana.crypto.work import Limits
from mana.domain.spaces import SPACE_POLICY, SPACE_POLICY_AUDIT, SPACE_POLICY_ID
from mana.hub.runner.app import Runner
from mana.hub.runner.memory import WORD_KEPT_MS, RunnerMemory
from mana.protocol.messages import SetWork, WorkState
from mana.testing.postgres import Database, connected
from mana.testing.work import limits_of, next_word, signed_work
from tests.runner.test_memory import dump, last, memory, restore
from tests.runner.world import World, now_ms, world

pytest_plugins = ["mana.testing.plugin"]
pytestmark = [pytest.mark.anyio]

WORK = "/api/v1/me/ai-work"


async def state(made: World) -> WorkState:
    return msgspec.json.decode((await made.ada.call("GET", WORK)).content, type=WorkState)


async def say(made: World, *, key: SigningKey | None = None, **limits: int | None) -> SetWork:
    """Let a device sign these caps in the place of those before."""
    held = await state(made)
    word = next_word(made.ada.account, held, replace(limits_of(held), **limits))  # type: ignore[arg-type]
    signed = signed_work(made.ada.account, word, key=key)
    if key is None:
        answer = await made.ada.call("PUT", WORK, signed)
        assert answer.status_code == 200, answer.text
    return signed


async def change(database: Database, sql: str, *values: object) -> None:
    """Change a row of the hub by hand."""
    async with connected(database.owner_url) as owner:
        await owner.execute(f"update mana_ai.account_work set {sql}", *values)


async def outcome(made: World, runner: Runner) -> tuple[str, str | None]:
    """Return what becomes of a run that is asked for now."""
    await made.run_now()
    assert (await runner.scheduler.tick()).errors == []
    return await last(made)


@pytest.mark.postgres
async def test_caps_behind_the_runner_are_not_obeyed(database: Database) -> None:
    """A cap that was raised, removed or put back in the database lets nothing run; a lower one does,
    and so does the person's next word."""
    refused, set_back = ("skipped", "signature-rejected"), ("skipped", "set-back")
    async with world(database) as made, made.runner() as runner:
        await made.ready()
        await change(database, "tokens_per_day_max = 9000")
        assert await outcome(made, runner) == ("done", None)
        first = await say(made, tokens_per_day_max=5_000)
        assert first.signed is not None
        for caps in ("tokens_per_day_max = 5001", "tokens_per_day_max = null"):
            await change(database, caps)
            assert await outcome(made, runner) == refused
        await change(database, "tokens_per_day_max = 4000")
        assert await outcome(made, runner) == ("done", None)
        await say(made, tokens_per_day_max=3_000)
        assert await outcome(made, runner) == ("done", None)
        forged = await say(made, tokens_per_day_max=8_000, key=SigningKey.generate())
        assert forged.signed is not None
        for signed, wanted in ((forged.signed, refused), (first.signed, set_back)):
            text = msgspec.json.encode(signed.word, order="sorted").decode()
            value = signed.signature.value
            await change(
                database, "word = $1, signature = $2, tokens_per_day_max = 5000", text, value
            )
            assert await outcome(made, runner) == wanted
        await change(database, "word = null, signer = null, signature = null, revision = 0")
        assert await outcome(made, runner) == set_back
        # What a device signs next holds again, also one that has not seen the newest word.
        held = await state(made)
        word = next_word(made.ada.account, held, Limits())
        answer = await made.ada.call("PUT", WORK, signed_work(made.ada.account, word))
        assert answer.status_code == 200
        assert await outcome(made, runner) == ("done", None)


@pytest.mark.postgres
async def test_what_only_the_database_says_is_not_remembered(database: Database) -> None:
    """A word in a space, or under a grant, that somebody made up in the database refuses nothing once
    that is right again."""
    async with world(database) as made, made.runner() as runner:
        await made.ready()
        await say(made, tokens_per_day_max=5_000)
        account = made.ada.account.account_id
        async with connected(database.owner_url) as owner:
            await owner.execute("set session_replication_role = replica")
            good = await owner.fetchval("select hub_signature from mana_ai.grants")
            await owner.execute("update mana_ai.grants set hub_signature = signature")
            assert await outcome(made, runner) == ("skipped", "signature-rejected")
            assert RunnerMemory(made.settings()).word(account) is None
            await owner.execute("update mana_ai.grants set hub_signature = $1", good)
        assert await outcome(made, runner) == ("done", None)
        assert RunnerMemory(made.settings()).word(account) is not None


@pytest.mark.postgres
async def test_a_lift_that_was_taken_back_stays_so(database: Database) -> None:
    """An older copy of what a space lifts is not obeyed once the runner saw that it was taken back."""
    async with world(database) as made, made.runner() as runner:
        await made.ready()
        path = "lifted/one"
        for op, value in (("insert", "delete_note"), ("update", None)):
            if value is None:
                older = await dump(database)
            group = f"00000000-0000-4000-8000-00000000000{len(op)}"
            said = {"tool": "delete_note", "action": "added" if value else "removed", "at": "x"}
            await made.push(
                made.change(SPACE_POLICY, SPACE_POLICY_ID, {path: value}, op=op, group=group),
                made.change(SPACE_POLICY_AUDIT, f"audit-{op}", dict(said), group=group),
            )
            assert await outcome(made, runner) == ("done", None)
        now = await dump(database)
        chain = ("mana_ai.decrypt_audit", "mana_ai.audit_heads")
        await restore(database, {**older, **{name: now[name] for name in chain}})
        assert await outcome(made, runner) == ("skipped", "set-back")


async def test_words_and_lifts_are_remembered_for_long(tmp_path: Path) -> None:
    """The newest of each is kept for more than a year, whoever tells an older one and in what order."""
    clock = [now_ms()]
    one, two = memory(tmp_path, clock), memory(tmp_path, clock)
    await one.saw_word("ada", 2, "second")
    await two.saw_word("ada", 1, "first")
    await one.saw_lifted("s", {"lifted/a": "2", "lifted/b": "1"})
    await two.saw_lifted("s", {"lifted/a": "1", "lifted/c": "3"})
    for each in (one, two, memory(tmp_path, clock)):
        assert each.word("ada") == (2, "second")
        assert each.lifted("s") == {"lifted/a": "2", "lifted/b": "1", "lifted/c": "3"}
        assert (each.word("eve"), each.lifted("t")) == (None, {})
    clock[0] += WORD_KEPT_MS - 1
    await one.saw_end({"grant-1": clock[0] + 1})
    assert memory(tmp_path, clock).word("ada") == (2, "second")
    clock[0] += 2
    await one.saw_word("eve", 1, "hers")
    await memory(tmp_path, clock).saw_end({"grant-2": clock[0] + 1})
    clock[0] += WORD_KEPT_MS
    await one.saw_end({"grant-3": clock[0] + 1})
    assert (one.word("ada"), one.lifted("s")) == (None, {})
