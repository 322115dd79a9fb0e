"""The runner's keys are replaced in time, each by the word of the one before, across any crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mana.crypto.primitives import b64
from mana.crypto.runners import RunnerPrivateKey, Succession, name_successor, succession_from
from mana.domain.errors import CryptoFailed
from mana.hub.runner import files
from mana.hub.runner import keys as runner_keys
from mana.hub.runner.ages import DAY_MS, MachineClocks, Reading
from mana.hub.runner.files import overwrite
from mana.hub.runner.keys import (
    AGES_FILE,
    CHAIN_FILE,
    DESTROYED_MS,
    PRIVATE_FILE,
    PUBLIC_FILE,
    RunnerKeys,
    RunnerKeysUnusable,
    read_chain,
)
from mana.hub.runner.settings import RunnerSettings
from mana.protocol.messages import RunnerInfo
from mana.testing.postgres import Database
from tests.runner.world import leave_runner_key, now_ms, world

pytest_plugins = ["mana.testing.plugin"]

STEPS = ("drawn", "chained", "published", "overwritten", "removed")
_drawn: list[RunnerPrivateKey] = []


class Crash(BaseException):
    """The process ends here."""


class Clock:
    """The clocks of a machine that is on all the time, until it is started anew."""

    def __init__(self) -> None:
        self.boot, self.up_ms, self.wall_ms = "boot 0", DAY_MS, now_ms()

    def __call__(self) -> Reading:
        return Reading(self.boot, self.up_ms, self.wall_ms)

    def pass_days(self, days: float) -> None:
        """Let time pass."""
        self.up_ms += round(days * DAY_MS)
        self.set(days)

    def set(self, days: float) -> None:
        """Set the wall clock by so much, while no time passes."""
        self.wall_ms += round(days * DAY_MS)

    def restart(self, days_off: float) -> None:
        """Start the machine anew, after its clock moved on by so much."""
        self.boot, self.up_ms = f"{self.boot} again", 0
        self.set(days_off)


class Rig:
    """The keys of one folder, with clocks, that may crash at a named step."""

    def __init__(self, home: Path) -> None:
        self.settings = RunnerSettings(home=home, database_url="")
        self.secrets = home / "secrets"
        self.clock = Clock()
        self.crash_at = ""
        leave_runner_key(self.settings)

    def open(self) -> RunnerKeys:
        return RunnerKeys(self.settings, clocks=self.clock, reached=self.reached)

    def reached(self, step: str) -> None:
        if step == self.crash_at:
            self.crash_at = ""
            raise Crash

    def days(self, days: float) -> None:
        self.clock.pass_days(days)

    @property
    def public(self) -> str:
        return (self.secrets / PUBLIC_FILE).read_text()

    @property
    def chain(self) -> list[str]:
        return [word.key.key_id() for word in read_chain(self.secrets / CHAIN_FILE)]


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Draw keys from a stock, because to draw an RSA pair takes a while."""
    # The first pair of a test is not of the stock: it would come after itself.
    leave_runner_key(RunnerSettings(home=tmp_path / "first", database_url=""))
    generate: Callable[[], RunnerPrivateKey] = RunnerPrivateKey.generate
    taken = iter(range(100))

    def next_key() -> RunnerPrivateKey:
        place = next(taken)
        if place == len(_drawn):
            _drawn.append(generate())
        return _drawn[place]

    monkeypatch.setattr(RunnerPrivateKey, "generate", next_key)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_pair_is_replaced_and_then_destroyed(rig: Rig) -> None:
    """At 15 days a new pair takes over and the old one still opens; at 30 days the old is gone."""
    keys = rig.open()
    first = keys.key_id
    rig.days(14.9)
    keys.turn()
    assert (keys.key_id, rig.chain) == (first, [])
    rig.days(0.2)
    keys.turn()
    second = keys.key_id
    assert second != first
    assert keys.opening(first) is not None
    assert keys.refusal(first) is None
    assert rig.chain == [first]
    assert keys.current.public().to_pem() == rig.public
    rig.days(15)
    keys.turn()
    third = keys.key_id
    assert len({first, second, third}) == 3
    assert keys.opening(first) is None
    assert keys.refusal(first) == "key-rotated"
    assert keys.refusal("0" * 64) == "not-configured"
    assert keys.refusal(second) is None
    assert rig.chain == [second, first]
    assert not (rig.secrets / PRIVATE_FILE).exists()
    again = rig.open()
    assert (again.key_id, again.refusal(first)) == (third, "key-rotated")


def test_the_old_half_is_overwritten_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the name of an old private half goes, its bytes on the disk are zeros."""
    seen: list[bytes] = []
    remove = files.remove

    def removing(path: Path) -> None:
        seen.append(path.read_bytes())
        remove(path)

    monkeypatch.setattr(runner_keys, "remove", removing)
    rig.open()
    rig.days(31)
    rig.open()
    assert len(seen) == 1
    assert seen[0] == bytes(len(seen[0]))
    assert seen[0]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("days", [16.0, 31.0])
def test_a_crash_at_any_step_is_made_good(rig: Rig, step: str, days: float) -> None:
    """After a crash at each step of a change, the next start ends where no crash would have."""
    first = rig.open().key_id
    rig.days(days)
    rig.crash_at = step
    if step in ("overwritten", "removed") and days < 30:
        assert rig.open().opening(first) is not None
        return
    with pytest.raises(Crash):
        rig.open()
    for _ in range(2):
        keys = rig.open()
        assert keys.key_id != first
        assert rig.chain == [first]
        assert rig.public == keys.current.public().to_pem()
        assert (keys.opening(first) is None) == (days > 30)
        assert len(list((rig.secrets / "runner").glob("*.key"))) == (1 if days > 30 else 2)


def test_a_device_never_meets_a_key_without_its_word(rig: Rig) -> None:
    """Whatever is published when a crash comes, the chain that is there leads to the public key."""
    first = rig.open().current.public()
    rig.days(16)
    for step in ("drawn", "chained", "published"):
        rig.crash_at = step
        with pytest.raises(Crash):
            rig.open()
        if rig.public != first.to_pem():
            break
        assert rig.chain in ([], [first.key_id()])
    assert rig.chain == [first.key_id()]


def test_runners_of_one_machine_agree(rig: Rig) -> None:
    """Of two runners one draws the new pair, and the other one takes it."""
    one, two = rig.open(), rig.open()
    rig.days(16)
    one.turn()
    two.turn()
    assert one.key_id == two.key_id
    assert len(list((rig.secrets / "runner").glob("*.key"))) == 2


def test_a_pair_that_nobody_signed_does_not_count(rig: Rig) -> None:
    """A private file whose former key did not sign it, or that a crash left as a draft, opens
    nothing."""
    keys = rig.open()
    rig.days(16)
    keys.turn()
    path = next(p for p in (rig.secrets / "runner").glob("*.key") if p.name != "runner.key")
    stored = msgspec.json.decode(path.read_bytes())
    stored["before"]["signature"] = b64(bytes(64))
    path.write_bytes(msgspec.json.encode(stored))
    (rig.secrets / "runner" / ".0123.key.1.ab").write_text("half a key")
    again = rig.open()
    assert again.opening(keys.key_id) is None
    assert not list((rig.secrets / "runner").glob(".0123*"))


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_clock_that_jumps_ends_no_key(rig: Rig, *, is_restarted: bool) -> None:
    """A clock a year ahead takes the half from nobody who has granted to it, while the runner is
    up or off, nor does it when it is right again."""
    keys = rig.open()
    rig.days(16)
    keys.turn()
    former, current = rig.chain[0], keys.key_id
    for days in (365, -365):
        if is_restarted:
            rig.clock.restart(days)
            keys = rig.open()
        else:
            rig.clock.set(days)
            keys.turn()
        assert keys.key_id == current
        assert keys.refusal(former) is None


def test_a_clock_that_is_set_back_keeps_no_key(rig: Rig) -> None:
    """However far back a clock is set, a key that is in use for 30 days has gone."""
    keys = rig.open()
    first = keys.key_id
    for _ in range(31):
        rig.clock.pass_days(1)
        rig.clock.set(-2)
        keys.turn()
    assert keys.refusal(first) == "key-rotated"
    assert not (rig.secrets / PRIVATE_FILE).exists()


def test_a_key_ages_while_the_machine_is_off(rig: Rig) -> None:
    """What a runner counted survives starts and crashes, and nights without it count too."""
    first = rig.open().key_id
    for _ in range(16):
        rig.days(0.5)
        rig.open()
        rig.days(0.03)
        rig.clock.restart(0.5)
    assert rig.open().key_id != first


def test_keys_of_an_unknown_age(rig: Rig) -> None:
    """Where nothing is kept of their ages, an old key is replaced and none is destroyed at once,
    though a clock that was wrong has written the time on its file."""
    keys, before = rig.open(), ""
    for days in (100, -100):
        before = keys.key_id
        (rig.secrets / AGES_FILE).write_text("{")
        rig.clock.set(days)
        keys = rig.open()
        assert keys.key_id != before
        assert keys.refusal(before) is None
    rig.days(DESTROYED_MS / DAY_MS)
    assert rig.open().refusal(before) == "key-rotated"


def test_a_key_that_cannot_be_read_is_told(rig: Rig) -> None:
    """A private file that is broken or empty stops the runner; it is no reason to draw another."""
    for content in ("", "MANA"):
        (rig.secrets / PRIVATE_FILE).write_text(content)
        with pytest.raises(RunnerKeysUnusable):
            rig.open()
    (rig.secrets / PRIVATE_FILE).write_text("x" * 100)
    overwrite(rig.secrets / PRIVATE_FILE)
    assert rig.open().key_id


def test_given_keys_are_the_operators(tmp_path: Path) -> None:
    """A pair of the settings is not replaced by itself."""
    given = RunnerPrivateKey.generate()
    clock = Clock()
    settings = RunnerSettings(home=tmp_path, database_url="", private_key_pem=given.to_pem())
    keys = RunnerKeys(settings, clocks=clock)
    clock.pass_days(100)
    keys.turn()
    assert keys.key_id == given.public().key_id()


def test_every_byte_of_a_word_counts() -> None:
    """A succession with any other byte in signature, former key or new key leads nowhere."""
    before, after = RunnerPrivateKey.generate(), RunnerPrivateKey.generate()
    word = name_successor(before, after.public())
    assert len(succession_from(after.public(), [word])) == 2
    signature = word.signature
    for at in range(len(signature)):
        flipped = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        assert succession_from(after.public(), [Succession(word.key, flipped)]) == (after.public(),)
    assert len(succession_from(before.public(), [word])) == 1
    assert len(succession_from(after.public(), [name_successor(after, before.public())])) == 1
    pem = word.key.to_pem()
    for at in range(0, len(pem), 7):
        other = pem[:at] + ("A" if pem[at] != "A" else "B") + pem[at + 1 :]
        try:
            found = Succession.read(other, b64(signature))
        except CryptoFailed:
            continue
        assert found.key == word.key or len(succession_from(after.public(), [found])) == 1


@pytest.mark.anyio
@pytest.mark.postgres
async def test_grants_to_the_old_key_still_open(database: Database) -> None:
    """A grant that names the former key is worked on until that key is destroyed, and the hub
    hands out the word by which devices know the new one."""
    async with world(database) as made:
        header = await made.ready()
        clock = Clock()
        clock.boot, clock.up_ms, _ = MachineClocks()()
        async with made.runner() as runner:
            keys: Any = runner.keys
            keys._ages._clocks = clock
            for days, state, reason in (
                (16, "done", None),
                (15, "skipped", "key-rotated"),
            ):
                clock.pass_days(days)
                await made.run_now()
                assert (await runner.scheduler.tick()).errors == []
                line = (await made.status()).occurrences[0]
                assert (line.state, line.reason) == (state, reason)
            answer = await made.ada.call("GET", "/api/v1/runner")
            info = msgspec.json.decode(answer.content, type=RunnerInfo)
            assert info.key_id == runner.keys.key_id
            assert info.succeeds[-1].key_id == header.runner_key_id
        again = await made.grant()
        assert again.runner_key_id == info.key_id
        await made.run_now()
        async with made.runner() as runner:
            await runner.scheduler.tick()
        assert (await made.status()).occurrences[0].state == "done"
