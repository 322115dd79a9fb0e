"""What a transaction of the replica can do."""

from __future__ import annotations

from mana.device.replica.pages import Pages


class Tx(Pages):
    """One transaction of the replica. What it can do stands by meaning in the modules beside."""

    def forget_space(self, space: str) -> None:
        """Remove everything of a space from this device."""
        tables = self._sql("select distinct tbl from records where space = ?", (space,)).fetchall()
        for name in (
            "records",
            "outbox",
            "aside",
            "gone",
            "overwritten",
            "held_only",
            "spaces",
        ):
            self._sql(f"delete from {name} where space = ?", (space,))  # noqa: S608
        for (table,) in tables:
            self._mark(str(table))
