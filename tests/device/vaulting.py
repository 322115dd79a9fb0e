"""What tests of vaults share: a book with its security and its spaces' follow-up, private notes."""

from __future__ import annotations

from mana.device.opened import Opened
from mana.device.records import RecordBook
from mana.device.security import Rotating, Security
from mana.device.spaces import Spaces
from mana.models.rules import Rules
from mana.protocol.messages import Vault
from tests.device.rig import CATALOGUE, Machine, write


def security(book: RecordBook, machine: Machine) -> Security:
    """Return the security of a book; its spaces follow as they do under a desk."""
    opened = Opened(
        book=book,
        hub=book.hub,
        catalogue=CATALOGUE,
        model=Rules(),
        model_local=True,
        now_ms=machine.clock,
        new_id=book.new_id,
    )
    spaces = Spaces(opened)
    book.inner().syncer.after_spaces = spaces.after_spaces
    rotation = spaces.rotation
    return Security(opened, Rotating(rotation.views, rotation.rotate_space, rotation.counted))


async def private_note(book: RecordBook, record_id: str, title: str) -> None:
    """Write a note that nobody else sees."""
    await book.commit([write(book, "notes", record_id, {"title": title}, visibility="private")])


def standing(book: RecordBook) -> Vault:
    """Return the vault as this book's device holds it."""
    return book.inner().keeper.standing
