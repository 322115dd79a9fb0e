"""Traces for an operator who collects them: how long what took, and how it ended.

A span holds words of the code and whole numbers, and nothing else: no text, no name and no id of a
person, a mission or a record. `Span.note` takes only the members that are listed here, so nobody adds
one in passing. Without OTEL_EXPORTER_OTLP_ENDPOINT nothing is traced, and nothing is imported.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mana.domain.errors import Invalid

VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_WORD: Final = re.compile(r"[a-z][a-z0-9:/_-]{0,63}")
_WORDS: Final = frozenset({"state", "reason", "kind", "phase"})
_NUMBERS: Final = frozenset(
    {"attempt", "tries", "rounds", "tool_calls", "steps", "missions", "tokens"}
)
_NAMES: Final = frozenset({"tick", "tick.planMission"})


class TracingMissing(Invalid):
    """Traces are asked for, and what sends them is not installed."""

    code = "TRACING_MISSING"
    advice = "Install the extra `otel`, or unset OTEL_EXPORTER_OTLP_ENDPOINT."


class Span:
    """Something that takes time. A span that nobody collects keeps nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def note(self, **facts: str | int | None) -> None:
        """Add facts: words of the code (others are left out, as `other`) and whole numbers.

        Raises Invalid for a fact that is not one of those listed here.
        """
        for name, value in facts.items():
            if name not in _WORDS | _NUMBERS:
                raise Invalid("a span has no such fact")
            if self._span is None or value is None:
                continue
            if name in _NUMBERS:
                self._span.set_attribute(f"mana.{name}", int(value))
            else:
                word = value if isinstance(value, str) and _WORD.fullmatch(value) else "other"
                self._span.set_attribute(f"mana.{name}", word)

    def reached(self, phase: str) -> None:
        """Say that a phase began."""
        if self._span is not None:
            self._span.add_event(phase if _WORD.fullmatch(phase) else "other")


class Tracing:
    """Makes spans, or nothing where nobody collects them."""

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("mana.runner")

    @property
    def is_on(self) -> bool:
        """Say whether anybody collects spans."""
        return self._tracer is not None

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[Span]:
        """Lend a span. What is raised within is told by its kind, never by its words."""
        if name not in _NAMES:
            raise Invalid("there is no such span")
        if self._tracer is None:
            yield Span()
            return
        from opentelemetry.trace import Status, StatusCode

        with self._tracer.start_as_current_span(
            name, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield Span(span)
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def tracing_from(environ: Mapping[str, str]) -> Tracing:
    """Return the tracing that the environment asks for; raise TracingMissing."""
    endpoint = environ.get(VARIABLE, "").strip().rstrip("/")
    if not endpoint:
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracingMissing(f"{VARIABLE} is set, and OpenTelemetry is not installed") from None
    provider = TracerProvider(
        resource=Resource.create({"service.name": "mana-runner"}), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces", timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider)
