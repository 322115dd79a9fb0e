"""The person's own settings, in the user scope: never shared, the same on every device."""

from __future__ import annotations

from typing import Final

from mana.domain.tables import Document, Table, Text, sealed

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
    ),
)
USER_TABLES: Final = frozenset({SETTINGS.name})
"""Tables that live in the user scope; all others live in shared or personal spaces."""
