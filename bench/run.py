"""What one run costs in its worker: CPU time, and which part of it goes where.

One process, no database and no network: the worker's own session over a channel that answers at
once, a model that needs no time, and missions of one account as devices seal and sign them, each
with an agent, its memory, five notes, three earlier runs, and one step that is proposed. What the
pipe costs the worker (packing, reading) is counted; the runner's side is not.
Aim: 2 ms of CPU time a run at most.

    python -m bench run [--runs=256] [--missions=16] [--top=25]
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import pstats
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mana.hub.runner.dialogue import Finished, Message, Stopped, ToWorker, WorkerLost
from mana.hub.runner.worker import work
from mana.testing.runs import HISTORY, Instant, Missions, answer


class Answering:
    """The worker's end of a pipe on which a runner answers at once, one run after the other.

    `spent_s` is the worker's CPU time at the end of each run: what this class needs is left out.
    """

    def __init__(
        self, missions: Missions, runs: int, profile: cProfile.Profile, *, from_run: int
    ) -> None:
        self._missions = missions
        self._runs = runs
        self._profile = profile
        self._from_run = from_run
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToWorker)
        self._waiting: asyncio.Queue[Message | None] = asyncio.Queue()
        self._apart_s = 0.0
        self.spent_s: list[float] = []
        self.stopped: list[Stopped] = []
        for message in missions.setup:
            self._waiting.put_nowait(message)
        self._waiting.put_nowait(missions.job(0))

    async def send(self, message: Message) -> None:
        """Send one message."""
        self.tell(message)

    def tell(self, message: Message) -> None:
        """Take one message of the worker's, and answer it."""
        assert msgspec.msgpack.encode(message)
        began = time.process_time()
        reply = answer(message)
        if reply is not None:
            self._waiting.put_nowait(reply)
        elif isinstance(message, Finished | Stopped):
            self.spent_s.append(began - self._apart_s)
            self._next(message)
        self._apart_s += time.process_time() - began

    def _next(self, ended: Finished | Stopped) -> None:
        """Queue the job after a run that ended; the profile begins with the first that counts."""
        if len(self.spent_s) == self._from_run:
            self._profile.enable()
        if isinstance(ended, Stopped):
            self.stopped.append(ended)
        else:
            self._missions.ran(ended)
        is_last = ended.run + 1 == self._runs
        self._waiting.put_nowait(None if is_last else self._missions.job(ended.run + 1))

    async def receive(self) -> Message:
        """Return the next message of the runner; raise WorkerLost after the last run."""
        message = await self._waiting.get()
        if message is None:
            raise WorkerLost("that was all")
        began = time.process_time()
        raw = msgspec.msgpack.encode(message)
        self._apart_s += time.process_time() - began
        found: Message = self._decoder.decode(raw)
        return found

    async def close(self) -> None:
        """Close this end."""


class _Unseen(cProfile.Profile):
    """A profile that looks at nothing: what it measures costs a half more."""

    def enable(self, subcalls: bool = True, builtins: bool = True) -> None:
        """Do nothing."""


def measured(runs: int, missions: int, profile: cProfile.Profile) -> list[float]:
    """Return the CPU seconds of each run, the first ones without history left out."""
    made = Missions.made(missions)
    first = missions * (HISTORY + 1)
    channel = Answering(made, first + runs, profile, from_run=first)

    async def session() -> None:
        try:
            await work(channel, model=Instant)
        except WorkerLost:
            return

    # As in the warm parent: what is loaded is no collector's any more.
    gc.collect()
    gc.freeze()
    asyncio.run(session())
    gc.unfreeze()
    profile.disable()
    if channel.stopped:
        raise RuntimeError(f"runs ended otherwise: {channel.stopped[0]}")
    spent = channel.spent_s
    return [
        after - before for before, after in zip(spent[first - 1 :], spent[first:], strict=False)
    ]


PARTS: Final = (
    ("read the job", "dialogue.py", "records_of"),
    ("read and check the header", "gates.py", "read_header"),
    ("verify the grant", "grants.py", "verify_grant"),
    ("verify the hub's word", "grants.py", "verify_countersignature"),
    ("verify who decides", "standing.py", "require_obeyed"),
    ("open the grant's keys", "opening.py", "open_keys"),
    ("open records", "opening.py", "open_record"),
    ("tell what earlier runs did", "past.py", "past_from_views"),
    ("write the prompt", "prompt.py", "prompt"),
    ("answer the model's calls", "calls.py", "answer_calls"),
    ("seal and sign", "writeback.py", "seal_run"),
    ("of all, Ed25519 verified", "~", "'verify' of"),
    ("of all, Ed25519 signed", "~", "'sign' of"),
    ("of all, HPKE", "~", "'decrypt' of 'cryptography.hazmat.bindings._rust.openssl.hpke"),
    ("of all, AES", "~", "AESGCM"),
    ("of all, canonical JSON", "encoding.py", "canonical_json"),
    ("of all, key derivation", "primitives.py", "hkdf"),
)
"""Parts of a run: a name, and the file and function that it is in."""


def main(options: Sequence[str] = ()) -> None:
    """Measure and print two tables."""
    numbers = dict(option.lstrip("-").split("=") for option in options)
    runs, missions = int(numbers.get("runs", 256)), int(numbers.get("missions", 16))
    spent = sorted(measured(runs, missions, _Unseen()))
    print(f"{'a run in its worker':<28}{'ms of CPU':>10}")
    for name, place in (
        ("1 of 10", runs // 10),
        ("median", runs // 2),
        ("9 of 10", runs * 9 // 10),
        ("worst", runs - 1),
    ):
        print(f"{name:<28}{spent[place] * 1_000:>10.2f}")
    print(f"{'mean':<28}{sum(spent) / runs * 1_000:>10.2f}\n")
    profile = cProfile.Profile()
    measured(runs, missions, profile)
    stats = pstats.Stats(profile)
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    total_s = 0.0
    for (file, _, name), (_, calls, _, inside_s, _) in stats.stats.items():  # type: ignore[attr-defined]
        # What the event loop ran, without what plays the runner.
        if (Path(file).name, name) == ("events.py", "_run"):
            total_s += inside_s
        elif (Path(file).name, name) == (Path(__file__).name, "_next"):
            total_s -= inside_s
        for part, where, what in PARTS:
            if Path(file).name == where and (name == what if where != "~" else what in name):
                found[part][0] += inside_s
                found[part][1] += calls
    print(f"{'part (profiled)':<32}{'share':>8}{'calls a run':>14}")
    for part, _, _ in PARTS:
        share, calls = found[part]
        print(f"{part:<32}{share / total_s:>8.1%}{calls / runs:>14.1f}")
    top = int(numbers.get("top", 0))
    if top:
        print()
        stats.sort_stats("tottime").print_stats(top)
