"""A device that writes without end, for a test that kills it. Arguments: home, hub, account id, mode.

In mode `write` it says a line for each write, after the replica has committed it:
`kept <record id> <title>`. In mode `drain` it sends what waits, says `drained`, and ends.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path

from mana.device.accounts import Accounts
from mana.device.records import RecordBook
from mana.device.settings import DeviceSettings
from mana.registry.catalogue import load_catalogue
from mana.testing.accounts import CHEAP, PASSWORD
from tests.device.rig import note

COUNTER = "counter"


def accounts_of(home: Path, hub_url: str) -> Accounts:
    """Return the accounts of a device that lives in a folder."""
    settings = DeviceSettings(home=home, hub_url=hub_url, kdf_floor=CHEAP)
    return Accounts(settings, load_catalogue())


async def write(book: RecordBook) -> None:
    """Write new notes, and each time one more step of a note that is there already."""
    await book.start()
    standing = await book.view("notes", COUNTER)
    count = 0 if standing is None else int(standing.text("title"))
    while True:
        count += 1
        for record_id, title in ((COUNTER, str(count)), (str(uuid.uuid4()), f"note {count}")):
            await note(book, record_id, title=title)
            print(f"kept {record_id} {title}", flush=True)
        await asyncio.sleep(0.01)  # the person's next word; the syncer works meanwhile


async def drain(book: RecordBook) -> None:
    """Sync until nothing waits."""
    while (status := await book.sync_now()).waiting:
        assert not status.refused, status
        await asyncio.sleep(0.05)
    print("drained", flush=True)


async def main() -> None:
    home, hub_url, account_id, mode = sys.argv[1:]
    book = await accounts_of(Path(home), hub_url).unlock(account_id, PASSWORD)
    try:
        await (write if mode == "write" else drain)(book)
    finally:
        await book.lock()


if __name__ == "__main__":
    asyncio.run(main())
