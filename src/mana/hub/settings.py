"""Settings of the hub, read once from the environment that `build` is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias, cast, get_args

from mana.crypto.passwords import FLOOR, HASH_COST, HashCost, KdfFloor
from mana.domain.errors import Invalid
from mana.hub.environment import number
from mana.models.settings import OFFLINE, ModelSettings, load_models

PORT_DEFAULT: Final = 3050
SignUps: TypeAlias = Literal["open", "invite", "closed"]


@dataclass(frozen=True, slots=True)
class HubSettings:
    """What the hub is told.

    `kdf_floor` and `hash_cost` are lowered by tests only. `runner_public_pem`: the runner's
    public bundle; empty: the file that a runner has left in the secrets of this machine. `models`:
    what the runner of this machine uses, for the consent, without any key.
    `passkey_domain`: the name of the page's host, where passkeys are made and used. `currency`:
    the one that every price and cost of this hub is in, three letters.
    """

    home: Path
    database_url: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = PORT_DEFAULT
    sign_ups: SignUps = "open"
    pool_size: int = 10
    issuer: str = "mana"
    runner_public_pem: str = ""
    models: ModelSettings = OFFLINE
    passkey_domain: str = "localhost"
    currency: str = "USD"
    kdf_floor: KdfFloor = FLOOR
    hash_cost: HashCost = HASH_COST
    heartbeat_s: float = 15.0
    socket_auth_s: float = 10.0

    smtp_url: str = field(default="", repr=False)
    smtp_from: str = ""

    @property
    def secrets_dir(self) -> Path:
        """Return the folder with the secrets of this machine (mode 0700)."""
        return self.home / "secrets"

    @classmethod
    def from_env(cls, environ: Mapping[str, str], *, database_url: str, home: Path) -> HubSettings:
        """Read the settings; raise Invalid naming the variable that is wrong.

        `database_url` is the address for the role `mana_app`.
        """
        sign_ups = environ.get("MANA_SIGNUP", "").strip() or "open"
        if sign_ups not in get_args(SignUps):
            raise Invalid("MANA_SIGNUP is open, invite or closed")
        currency = environ.get("MANA_CURRENCY", "").strip().upper() or "USD"
        if not (len(currency) == 3 and currency.isascii() and currency.isalpha()):
            raise Invalid("MANA_CURRENCY is three letters, as EUR")
        return cls(
            home=home,
            database_url=database_url,
            host=environ.get("MANA_HUB_HOST", "").strip() or "127.0.0.1",
            port=number(environ, "MANA_HUB_PORT", PORT_DEFAULT, 0, 65_535),
            sign_ups=cast(SignUps, sign_ups),
            pool_size=number(environ, "MANA_HUB_POOL_SIZE", 10, 1, 200),
            issuer=environ.get("MANA_ISSUER", "").strip() or "mana",
            runner_public_pem=environ.get("MANA_AI_PUBLIC_KEY_PEM", "").strip(),
            models=load_models(home, environ, with_keys=False),
            smtp_url=environ.get("MANA_SMTP_URL", "").strip(),
            smtp_from=environ.get("MANA_SMTP_FROM", "").strip(),
            passkey_domain=environ.get("MANA_PASSKEY_DOMAIN", "").strip().lower() or "localhost",
            currency=currency,
        )
