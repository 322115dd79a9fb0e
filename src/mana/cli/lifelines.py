"""A part's side of the supervisor's two pipes: saying that it serves, and when to stop.

Without a supervisor a part says so on standard output and stops at SIGINT or SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping

from mana.cli.supervisor import LIFELINE_VARIABLE, READY_FD_VARIABLE


def announcer(environ: Mapping[str, str], part: str) -> Callable[[Mapping[str, object]], None]:
    """Return what a part calls once with its address and facts when it serves."""
    handle = environ.get(READY_FD_VARIABLE, "")

    def announce(facts: Mapping[str, object]) -> None:
        if handle:
            with os.fdopen(int(handle), "wb") as pipe:
                pipe.write(json.dumps(dict(facts)).encode() + b"\n")
        else:
            print(f"mana {part}: {facts.get('url', 'ready')}", flush=True)  # noqa: T201

    return announce


@contextlib.contextmanager
def stop_event(environ: Mapping[str, str]) -> Iterator[asyncio.Event]:
    """Return an event that is set when this part should stop; call it inside the event loop."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    watched = environ.get(LIFELINE_VARIABLE) == "stdin"
    if watched:

        def on_input() -> None:
            if not os.read(0, 4_096):
                loop.remove_reader(0)
                stopping.set()

        loop.add_reader(0, on_input)
    try:
        yield stopping
    finally:
        if watched:
            loop.remove_reader(0)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
