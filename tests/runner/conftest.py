"""What tests of the runner look at."""

from __future__ import annotations

from typing import Any

import pytest

from mana.hub.runner import run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each record that a worker opens."""
    names: list[str] = []
    open_record = run.open_record

    def opening(space_id: str, record: Any, *rest: Any, **options: Any) -> Any:
        names.append(f"{record.table}:{record.id}")
        return open_record(space_id, record, *rest, **options)

    monkeypatch.setattr(run, "open_record", opening)
    return names
