"""A script can tell Mana's errors apart by the exit status."""

from __future__ import annotations

import pytest

from mana.cli.exits import exit_status
from mana.domain.errors import Conflict, Forbidden, ManaError, NotFound, TooLarge, Unavailable


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ManaError(), 1),
        (TooLarge(), 2),
        (NotFound(), 3),
        (Forbidden(), 4),
        (Conflict(), 5),
        (Unavailable(), 6),
    ],
)
def test_nearest_class_decides(error: ManaError, status: int) -> None:
    """Every error has a status, its own or that of the fact it is a kind of."""
    assert exit_status(error) == status


def test_every_error_has_a_failing_status() -> None:
    """No error of the tree ends in success."""
    kinds = [ManaError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        assert exit_status(kind.__new__(kind)) > 0
