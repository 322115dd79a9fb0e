"""The person's own settings, in the user scope: never shared, the same on every device."""

from __future__ import annotations

from typing import Final

from mana.domain.tables import Choice, Document, Identifier, Moment, Shape, Table, Text, sealed

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
    ),
)
"""`runnerKeys`: ids of the runners' keys that the person granted to, an entry for each, so that two
devices that each add one keep both. `comparedKeys`: in the same way `<account id> <fingerprint>` of
whom the person compared.
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
