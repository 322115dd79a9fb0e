"""Settings of the runner, read once from the environment that `build` is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mana.domain.errors import Invalid
from mana.domain.occurrences import FAIL_POINTS, HEARTBEAT_S, LEASE_S
from mana.hub.environment import flag, number
from mana.models.settings import OFFLINE, ModelSettings, load_models

PORT_DEFAULT: Final = 3067
TICK_INTERVAL_MS_DEFAULT: Final = 60_000
CONCURRENCY_DEFAULT: Final = 64
CONCURRENCY_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """What the runner is told. Secrets are never shown.

    `models`: what it may call, with keys. `concurrency`: runs at one time; those
    of one account share a worker. `run_s_max`: after this long a run is given up as failed.
    """

    home: Path
    database_url: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = PORT_DEFAULT
    models: ModelSettings = OFFLINE
    tick_interval_ms: int = TICK_INTERVAL_MS_DEFAULT
    tick_enabled: bool = True
    service_key: str = field(default="", repr=False)
    private_key_pem: str = field(default="", repr=False)
    concurrency: int = CONCURRENCY_DEFAULT
    run_s_max: int = 600
    lease_s: int = LEASE_S
    heartbeat_s: int = HEARTBEAT_S
    fail_point: str | None = None
    issuer: str = "mana"

    @property
    def secrets_dir(self) -> Path:
        """Return the folder with the secrets of this machine (mode 0700)."""
        return self.home / "secrets"

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str], *, database_url: str, home: Path
    ) -> RunnerSettings:
        """Read the settings; raise Invalid naming the variable that is wrong."""
        fail_point = environ.get("MANA_FAIL_POINT", "").strip() or None
        if fail_point is not None and fail_point not in FAIL_POINTS:
            raise Invalid("MANA_FAIL_POINT is one of: " + ", ".join(FAIL_POINTS))
        lease_s = number(environ, "MANA_RUNNER_LEASE_S", LEASE_S, 2, 3_600)
        return cls(
            home=home,
            database_url=database_url,
            host=environ.get("MANA_RUNNER_HOST", "").strip() or "127.0.0.1",
            port=number(environ, "MANA_RUNNER_PORT", PORT_DEFAULT, 0, 65_535),
            models=load_models(home, environ),
            tick_interval_ms=number(
                environ, "TICK_INTERVAL_MS", TICK_INTERVAL_MS_DEFAULT, 10, 86_400_000
            ),
            tick_enabled=flag(environ, "TICK_ENABLED", True),
            service_key=environ.get("MANA_SERVICE_KEY", "").strip(),
            private_key_pem=environ.get("MANA_AI_PRIVATE_KEY_PEM", "").strip(),
            concurrency=number(
                environ, "MANA_RUNNER_CONCURRENCY", CONCURRENCY_DEFAULT, 1, CONCURRENCY_MAX
            ),
            run_s_max=number(environ, "MANA_RUNNER_RUN_S_MAX", 600, 1, 86_400),
            lease_s=lease_s,
            # Renewed late, a lease is another's, and its run is paid for twice.
            heartbeat_s=number(
                environ,
                "MANA_RUNNER_HEARTBEAT_S",
                min(HEARTBEAT_S, max(1, lease_s // 4)),
                1,
                lease_s // 2,
            ),
            fail_point=fail_point,
            issuer=environ.get("MANA_ISSUER", "").strip() or "mana",
        )
