"""The person's own settings, in the user scope: never shared, the same on every device."""

from __future__ import annotations

from typing import Final

from mana.domain.money import COST_PER_DAY_MAX
from mana.domain.tables import (
    Choice,
    Document,
    Identifier,
    Moment,
    Shape,
    Table,
    Text,
    Whole,
    sealed,
)

SETTINGS_ID: Final = "settings-global"
SETTINGS: Final = Table(
    name="userSettings",
    app_id="mana",
    agents_may_write=False,
    described="Settings of a person.",
    fields=(
        sealed("displayName", Text(80)),
        sealed("timeZone", Text(64)),
        sealed("language", Text(16)),
        sealed("theme", Text(16)),
        sealed("auditHead", Document(1_024)),
        sealed("runnerKeys", Identifier(), shape=Shape.SET),
        sealed("comparedKeys", Text(80), shape=Shape.SET),
        sealed("workStoppedAt", Moment()),
        sealed("workHub", Text(64)),
        sealed("workWord", Document(1_024)),
    ),
)
"""`runnerKeys`: ids of the runners' keys that the person granted to, an entry for each, so that two
devices that each add one keep both. `comparedKeys`: in the same way `<account id> <fingerprint>` of
whom the person compared. `workStoppedAt`: since when no mission of the person runs, anywhere.
`workHub`: the hub that words on their work are for; `workWord`: the newest such word. By these a new
device sees what a hub keeps from it.
"""
MODELS: Final = Table(
    name="aiModels",
    app_id="mana",
    agents_may_write=False,
    title_field="label",
    described="Model endpoints of the person's own; a grant hands one to the runner, sealed.",
    fields=(
        sealed("label", Text(80)),
        sealed("url", Text(500)),
        sealed("model", Text(200)),
        sealed("key", Text(1_000)),
        sealed("promptPrice", Whole(0, COST_PER_DAY_MAX)),
        sealed("completionPrice", Whole(0, COST_PER_DAY_MAX)),
        sealed("contextTokens", Whole(1_024, 100_000_000)),
    ),
)
"""Prices are those of `money.Price`; without both, no cap of costs can hold, so a mission or agent that
has one does not use this model.
"""
INVITATIONS: Final = Table(
    name="userInvitations",
    app_id="mana",
    agents_may_write=False,
    described="Invitations that the person made: what only their own devices may know of them.",
    fields=(
        sealed("spaceId", Identifier()),
        sealed("role", Choice(("admin", "member", "viewer"))),
        sealed("secret", Text(64)),
        sealed("expiresAt", Moment()),
        sealed("label", Text(120)),
        sealed("head", Text(64)),
    ),
)
"""The record's id is the invitation's; `head`: the newest entry of the log when it was made."""

USER_TABLES: Final = frozenset(
    {
        SETTINGS.name,
        INVITATIONS.name,
        MODELS.name,
        "userContext",
        "userTagPresets",
        "meditateSettings",
        "sleepSettings",
        "moodSettings",
        "timeSettings",
        "invoiceSettings",
        "broadcastSettings",
        "wetterSettings",
        "newsPreferences",
    }
)
"""Tables that live in the user scope; all others live in shared or personal spaces. Some of the
names wait for their modules: which scope a table has is decided before it exists.
"""
