"""The hub's secrets: made once, whole, for this account's eyes only."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mana.domain.errors import Invalid
from mana.hub.secrets import SecretsUnusable, load_or_create, load_public_keys
from mana.hub.settings import HubSettings


def test_made_once(tmp_path: Path) -> None:
    """Processes that start together end up with the same secrets, and so does every later one."""
    folder = tmp_path / "secrets"
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: load_or_create(folder), range(16)))
    assert len({(one.kek, one.salt) for one in found}) == 1
    again = load_or_create(folder)
    assert (again.kek, again.public()) == (found[0].kek, found[0].public())
    token_key, grant_key = load_public_keys(folder)
    assert token_key == again.token_key.public()
    assert grant_key == again.grant_key.public()
    assert sorted(path.name for path in folder.iterdir()) == ["hub.key", "hub.pub"]


def test_closed_to_others(tmp_path: Path) -> None:
    """Folder and files can be read by their owner alone, and no secret shows in a repr."""
    folder = tmp_path / "secrets"
    secrets = load_or_create(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shown = repr(secrets)
    assert secrets.kek.hex() not in shown


def test_broken_file_is_not_replaced(tmp_path: Path) -> None:
    """Secrets that cannot be read stop the hub; new ones would open nothing."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "hub.key").write_text('{"version": 1}')
    with pytest.raises(SecretsUnusable):
        load_or_create(folder)
    assert (folder / "hub.key").read_text() == '{"version": 1}'


def test_settings(tmp_path: Path) -> None:
    """Settings come from the environment that is given, and a wrong one is named."""

    def read(**environ: str) -> HubSettings:
        return HubSettings.from_env(environ, database_url="postgresql://x/y", home=tmp_path)

    assert (read().port, read().host, read().sign_ups) == (3050, "127.0.0.1", "open")
    assert read(MANA_HUB_PORT="0", MANA_SIGNUP="invite").sign_ups == "invite"
    for name, value in (("MANA_HUB_PORT", "x"), ("MANA_HUB_PORT", "70000"), ("MANA_SIGNUP", "no")):
        with pytest.raises(Invalid, match=name):
            read(**{name: value})
