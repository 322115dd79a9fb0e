"""Figures of the runner for Prometheus. Labels are words of the code, never of a person."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_HTTP_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The counters of one runner; names are the reference's (`mana_ai_…`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"mana_ai_{name}", words, labels, registry=self.registry)

        self.http_requests = counter("http_requests", "Requests.", "method", "path", "status")
        self.http_seconds = Histogram(
            "mana_ai_http_request_duration_seconds",
            "Time of requests.",
            ("method", "path", "status"),
            registry=self.registry,
            buckets=_HTTP_BUCKETS,
        )
        self.ticks = counter("ticks", "Passes over what is due.")
        self.tick_seconds = Histogram(
            "mana_ai_tick_duration_seconds",
            "Time of passes.",
            registry=self.registry,
            buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 120),
        )
        self.plans_produced = counter("plans_produced", "Plans that a model came to.")
        self.plans_written_back = counter("plans_written_back", "Iterations committed.")
        self.parse_failures = counter("parse_failures", "Runs that a model failed.")
        self.mission_errors = counter("mission_errors", "Runs that ended by a defect.")
        self.decrypts = counter("decrypts", "Records opened.", "table")
        self.scope_violations = counter(
            "grant_scope_violations", "Inputs outside their grant.", "table"
        )
        self.grant_skips = counter("grant_skips", "Runs refused by a grant.", "reason")
        self.decisions = counter("agent_decisions", "What became of runs.", "decision")
        self.tokens = counter("tokens_used", "Tokens that models reported.")
        self.tool_calls = counter("tool_calls", "Calls planned.", "tool", "policy", "outcome")
        self.rounds = Histogram(
            "mana_ai_planner_rounds",
            "Rounds of a run.",
            registry=self.registry,
            buckets=(1, 2, 3, 4, 5),
        )
        self.call_seconds = Histogram(
            "mana_ai_planner_request_duration_seconds",
            "Time of calls of a model.",
            registry=self.registry,
            buckets=(0.25, 0.5, 1, 2, 5, 10, 30, 60),
        )
        self.run_seconds = Histogram(
            "mana_ai_run_duration_seconds",
            "Time of runs.",
            registry=self.registry,
            buckets=(0.01, 0.05, 0.25, 1, 5, 10, 30, 60, 180, 600),
        )
        self.provider_errors = counter(
            "provider_errors", "Calls that a model's provider failed.", "provider", "kind"
        )
        self.reminders = counter(
            "reminders_emitted", "Reminders that models were given.", "producer", "severity"
        )
        self.compactions = counter("compactions_triggered", "Histories that were folded.")
        self.compacted_turns = Histogram(
            "mana_ai_compacted_turns",
            "Messages that a compaction folded.",
            registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
        )
        self.retried = counter("occurrences_retried", "Runs that are tried again.", "reason")
        self.errored = counter("missions_errored", "Missions that failed too often in a row.")
        self.missed = counter("occurrences_missed", "Due moments that nothing could run.")
        self.crashes = counter("occurrences_crashed", "Occurrences given up after crashes.")

    def text(self) -> bytes:
        """Return all figures in the text form."""
        return generate_latest(self.registry)
