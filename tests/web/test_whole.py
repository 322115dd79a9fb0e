"""The whole of Mana in a real browser: one command, then the main job by keys alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.cli.started import address, up
from tests.web.journey import play

pytestmark = pytest.mark.slow


def test_a_newcomer_goes_from_sign_up_to_revert(page: Page, tmp_path: Path) -> None:
    """With real hub, runner, database and device, the page does the main job without a pointer."""
    with up(tmp_path / "home") as (_, lines):
        play(page, address(lines), login="ada")
