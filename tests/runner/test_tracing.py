"""Traces say how long and how it ended, and nothing of whom and what."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from mana.domain.errors import Invalid
from mana.hub.runner.tracing import VARIABLE, Tracing, TracingMissing, tracing_from
from mana.testing.postgres import Database
from tests.runner.world import CANARY, world


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """Lend the address of a collector and what it was sent."""
    sent: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", sent
    server.shutdown()
    server.server_close()
    thread.join()


def test_spans_are_sent_without_content(collector: tuple[str, list[bytes]]) -> None:
    """What a collector gets are names, words and numbers; a text becomes `other`."""
    address, sent = collector
    tracing = tracing_from({VARIABLE: address})
    with tracing.span("tick.planMission") as span:
        span.note(state="done", reason="Dear diary, zanzibar", rounds=3)
        span.reached("model")
    with pytest.raises(ValueError, match="zanzibar"), tracing.span("tick"):
        raise ValueError("zanzibar")
    tracing.close()
    raw = b"".join(sent)
    assert b"tick.planMission" in raw
    assert b"mana.rounds" in raw
    assert b"ValueError" in raw
    assert b"zanzibar" not in raw


def test_only_listed_facts_are_noted() -> None:
    """Nobody adds a title or an id to a span in passing."""
    tracing = Tracing()
    with tracing.span("tick") as span, pytest.raises(Invalid):
        span.note(title="Weekly review")
    with pytest.raises(Invalid), tracing.span("mission-1"):
        raise AssertionError("a span of another name began")


def test_nothing_is_traced_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the setting nothing is imported; with it, what is missing is named."""
    original = builtins.__import__

    def refusing(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with tracing_from({}).span("tick") as span:
        span.note(state="done")
    with pytest.raises(TracingMissing):
        tracing_from({VARIABLE: "http://127.0.0.1:4318"})


@pytest.mark.postgres
@pytest.mark.anyio
async def test_a_run_is_traced_without_content(
    database: Database, collector: tuple[str, list[bytes]]
) -> None:
    """What a collector gets of a whole run holds no text and no id of anybody's."""
    address, sent = collector
    async with world(database) as made:
        await made.ready()
        await made.run_now()
        tracing = tracing_from({VARIABLE: address})
        async with made.runner(tracing=tracing) as runner:
            assert (await runner.scheduler.tick()).plans_written_back == 1
        raw = b"".join(sent)
        assert b"tick.planMission" in raw
        for phase in (b"prompt", b"model", b"done"):
            assert phase in raw
        for secret in (CANARY, made.ada.account.account_id, str(made.ada.space), "mission-1"):
            assert secret.encode() not in raw
