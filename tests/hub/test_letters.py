"""Letters: off until a person confirms an address, without content, and never lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage, Message
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mana.domain.errors import Invalid
from mana.hub.letters.post import CODE, WAITS, LetterFailed, Post, require_address
from mana.hub.letters.service import CODES_TO_ADDRESS_MAX, CodeRefused, LetterService
from mana.hub.letters.store import LetterStore, letter_waits
from mana.hub.tenants import Tenant
from mana.protocol.messages import NotifyState, SetNotify
from mana.testing.postgres import Database, Tenancy, connected, database_text
from tests.hub.client import Person, Served, served_hub

pytestmark = pytest.mark.anyio
PATH = "/api/v1/me/notifications"
ADDRESS = "ada@example.org"


@dataclass
class Mailbox:
    """A mail server on loopback. `refuses`: how many letters it does not take yet."""

    port: int = 0
    refuses: int = 0
    letters: list[Message] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak as much SMTP as a client needs."""
        writer.write(b"220 here\r\n")
        while line := (await reader.readline()).upper():
            if line.startswith(b"DATA"):
                writer.write(b"354 go on\r\n")
                raw = (await reader.readuntil(b"\r\n.\r\n"))[:-5]
                if self.refuses:
                    self.refuses -= 1
                    writer.write(b"451 not now\r\n")
                else:
                    self.letters.append(message_from_bytes(raw))
                    self.came.set()
                    writer.write(b"250 taken\r\n")
            elif line.startswith(b"QUIT"):
                writer.write(b"221 bye\r\n")
                break
            else:
                writer.write(b"250 yes\r\n")
            await writer.drain()
        writer.close()

    async def next(self) -> Message:
        """Return the next letter."""
        while not self.letters:
            self.came.clear()
            await self.came.wait()
        return self.letters.pop(0)


@contextlib.asynccontextmanager
async def mailbox() -> AsyncIterator[Mailbox]:
    """Lend a mail server."""
    box = Mailbox()
    server = await asyncio.start_server(box.talk, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()


@contextlib.asynccontextmanager
async def posting_hub(database: Database, box: Mailbox) -> AsyncIterator[Served]:
    """Lend a hub that sends its letters to a mailbox."""
    with tempfile.TemporaryDirectory(prefix="mana-letters-") as folder:
        async with served_hub(
            database,
            home=Path(folder),
            smtp_url=f"smtp://127.0.0.1:{box.port}",
            smtp_from="mana@example.org",
        ) as served:
            yield served


async def put(person: Person, status: int = 200, **wanted: object) -> NotifyState:
    """Change what a person wants."""
    answer = await person.call("PUT", PATH, SetNotify(**wanted))  # type: ignore[arg-type]
    assert answer.status_code == status, answer.text
    return msgspec.json.decode(answer.content, type=NotifyState) if status == 200 else _NONE


_NONE = NotifyState(available=False)


def text_of(letter: Message) -> str:
    """Return what a letter says."""
    raw = letter.get_payload(decode=True)
    assert isinstance(raw, bytes)
    return raw.decode("utf-8").replace("\r\n", "\n").strip() + "\n"


def code_of(letter: Message) -> str:
    """Return the code in a letter."""
    found = re.search(r"\b\d{8}\b", text_of(letter))
    assert found is not None
    return found[0]


async def confirmed(person: Person, box: Mailbox) -> None:
    """Give and confirm an address."""
    await put(person, address=ADDRESS)
    state = await put(person, code=code_of(await box.next()))
    assert state == NotifyState(available=True, address=ADDRESS, confirmed=True, enabled=True)


async def something_waits(runner_tenancy: Tenancy, person: Person) -> None:
    """Do what a runner does when it wrote a proposal."""
    async with runner_tenancy.transaction(Tenant(person.account.account_id)) as tx:
        await letter_waits(tx)


async def until(owner: Any, question: str) -> None:
    """Wait until the database answers yes."""
    while not await owner.fetchval(question):  # noqa: ASYNC110 - another process does
        await asyncio.sleep(0.01)


async def test_nothing_is_sent_before_an_address_is_confirmed(
    database: Database, runner_tenancy: Tenancy
) -> None:
    """Letters are off at first, a code goes to the address, and only the code switches them on."""
    async with mailbox() as box, posting_hub(database, box) as served:
        ada = await served.sign_up("ada")
        await something_waits(runner_tenancy, ada)
        state = await put(ada, address=ADDRESS)
        assert (state.confirmed, state.enabled) == (False, False)
        letter = await box.next()
        assert letter["To"] == ADDRESS
        assert letter["Subject"] == CODE[0]
        await something_waits(runner_tenancy, ada)
        await put(ada, status=400, enabled=True)
        await put(ada, status=400, code="00000000")
        await put(ada, code=code_of(letter))
        await something_waits(runner_tenancy, ada)
        assert (await box.next())["Subject"] == WAITS[0]


async def test_a_letter_says_nothing_of_what_waits(
    database: Database, runner_tenancy: Tenancy
) -> None:
    """The letter is the same text for everybody, and the database holds no address."""
    async with mailbox() as box, posting_hub(database, box) as served:
        ada = await served.sign_up("ada")
        await confirmed(ada, box)
        await something_waits(runner_tenancy, ada)
        letter = await box.next()
        assert text_of(letter) == WAITS[1]
        assert ada.account.account_id not in letter.as_string()
        assert ADDRESS not in await database_text(database.owner_url)


async def test_a_letter_that_fails_is_tried_again(
    database: Database, runner_tenancy: Tenancy
) -> None:
    """A mail server that is away loses no letter, and sends none twice."""
    async with mailbox() as box, posting_hub(database, box) as served:
        ada = await served.sign_up("ada")
        await confirmed(ada, box)
        box.refuses = 1
        await something_waits(runner_tenancy, ada)
        async with connected(database.owner_url) as owner:
            await until(owner, "select attempts > 0 from mana.letters")
            await owner.execute("update mana.letters set due_at = clock_timestamp()")
            await owner.execute("select pg_notify('mana_letters', '')")
            assert (await box.next())["Subject"] == WAITS[0]
            await until(owner, "select not waiting from mana.letters")
        assert box.letters == []


async def test_codes_are_few_and_tried_a_few_times(database: Database) -> None:
    """Nobody makes the hub write to a stranger often, or guesses a code."""
    async with mailbox() as box, posting_hub(database, box) as served:
        ada = await served.sign_up("ada")
        await put(ada, address=ADDRESS)
        code = code_of(await box.next())
        wrong = f"{(int(code) + 1) % 10**8:08d}"
        for _ in range(5):
            await put(ada, status=400, code=wrong)
        await put(ada, status=400, code=code)
        for _ in range(2):
            await put(ada, address=ADDRESS)
            await box.next()
        await put(ada, status=429, address="other@example.org")
        assert box.letters == []


async def test_forgetting_an_address_brings_no_more_codes(
    database: Database, runner_tenancy: Tenancy
) -> None:
    """Who removes the address and gives one anew has the hub write to nobody more often."""
    async with mailbox() as box, posting_hub(database, box) as served:
        ada = await served.sign_up("ada")
        await confirmed(ada, box)
        await something_waits(runner_tenancy, ada)
        await box.next()
        for _ in range(2):
            await put(ada, address="")
            await put(ada, address=ADDRESS)
            code = code_of(await box.next())
        await put(ada, code=code)
        await something_waits(runner_tenancy, ada)
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select due_at > clock_timestamp() from mana.letters")
        await put(ada, address="")
        await put(ada, status=429, address="bob@example.org")
        assert box.letters == []


@dataclass
class Posted:
    """Letters that a service sent without a mail server. `fails`: how many are not taken yet."""

    letters: list[tuple[str, str]] = field(default_factory=list)
    fails: int = 0

    async def send(self, address: str, words: tuple[str, str]) -> None:
        if self.fails:
            self.fails -= 1
            raise LetterFailed("not now")
        self.letters.append((address, words[1]))

    def take_code(self) -> str:
        """Take the newest letter, and return its code."""
        found = re.search(r"\d{8}", self.letters.pop()[1])
        assert found is not None
        return found[0]


async def tenants(database: Database, *names: str) -> list[Tenant]:
    """Return accounts that have just signed up."""
    async with served_hub(database) as served:
        return [Tenant((await served.sign_up(name)).account.account_id) for name in names]


async def test_one_letter_an_hour(
    database: Database, tenancy: Tenancy, runner_tenancy: Tenancy
) -> None:
    """However much waits, an hour lies between two letters."""
    posted = Posted()
    letters = LetterService(LetterStore(tenancy), bytes(32), posted.send)
    (ada,) = await tenants(database, "ada")
    await letters.set(ada, SetNotify(address=ADDRESS))
    await letters.send_due()
    await letters.set(ada, SetNotify(code=posted.take_code()))
    async with connected(database.owner_url) as owner:
        for _ in range(3):
            async with runner_tenancy.transaction(ada) as tx:
                await letter_waits(tx)
                await letter_waits(tx)
            await letters.send_due()
            assert len(posted.letters) == 1
        left = await owner.fetchval(
            "select extract(epoch from due_at - clock_timestamp()) from mana.letters"
        )
        assert 3_400 < left <= 3_600


async def test_many_accounts_flood_no_address(database: Database, tenancy: Tenancy) -> None:
    """However many accounts name an address, and however they write it, ten codes a day go there;
    and who asks for one that does not go out is told the same."""
    posted, names = Posted(), ("ada", "bob", "cid", "dee")
    letters = LetterService(LetterStore(tenancy), bytes(32), posted.send)
    people = await tenants(database, *names)
    for number, person in enumerate(people * 3):
        address = f"Victim+{number}@Example.org"
        told = await letters.set(person, SetNotify(address=address))
        assert told == NotifyState(available=True, address=address)
        await letters.send_due()
    assert len(posted.letters) == CODES_TO_ADDRESS_MAX < len(people) * 3
    await letters.send_due()
    other = (await tenants(database, "eve"))[0]
    await letters.set(other, SetNotify(address="other@example.org"))
    await letters.send_due()
    assert posted.letters[-1][0] == "other@example.org"
    async with connected(database.owner_url) as owner:
        await owner.execute(
            "update mana.letter_places set codes_since = codes_since - '1 day'::interval"
        )
    await letters.set(other, SetNotify(address="victim@example.org"))
    await letters.send_due()
    assert posted.letters[-1][0] == "victim@example.org"


async def test_an_address_of_several_accounts_has_one_letter_an_hour(
    database: Database, tenancy: Tenancy, runner_tenancy: Tenancy
) -> None:
    """What waits for two people who read the same mail is one letter, and the other's comes an
    hour later; a letter that failed holds up nobody but the others."""
    posted = Posted()
    letters = LetterService(LetterStore(tenancy), bytes(32), posted.send)
    people = await tenants(database, "ada", "bob")
    for person in people:
        await letters.set(person, SetNotify(address=ADDRESS))
        await letters.send_due()
        await letters.set(person, SetNotify(code=posted.take_code()))
    for person in people:
        async with runner_tenancy.transaction(person) as tx:
            await letter_waits(tx)
    posted.fails = 1
    async with connected(database.owner_url) as owner:
        for sent, waiting in ((0, 2), (1, 1), (1, 1)):
            await letters.send_due()
            assert len(posted.letters) == sent
            assert (
                await owner.fetchval("select count(*) from mana.letters where waiting") == waiting
            )
            await owner.execute(
                "update mana.letters set due_at = clock_timestamp()"
                " where due_at < clock_timestamp() + interval '50 minutes'"
            )
        await owner.execute(
            "update mana.letter_places set letter_at = letter_at - '1 hour'::interval"
        )
        await owner.execute("update mana.letters set due_at = clock_timestamp() where waiting")
        await letters.send_due()
        assert [address for address, _ in posted.letters] == [ADDRESS] * 2


async def test_a_code_is_sent_though_the_mail_server_was_away(
    database: Database, tenancy: Tenancy
) -> None:
    """A code that the mail server did not take is tried again, and the database tells neither it
    nor the address meanwhile."""
    posted = Posted(fails=1)
    letters = LetterService(
        LetterStore(tenancy), bytes(32), posted.send, new_code=lambda: "31415926"
    )
    (ada,) = await tenants(database, "ada")
    await letters.set(ada, SetNotify(address=ADDRESS))
    await letters.send_due()
    assert not posted.letters
    text = await database_text(database.owner_url)
    assert ADDRESS not in text
    assert "31415926" not in text
    async with connected(database.owner_url) as owner:
        await owner.execute("update mana.letters set code_due_at = clock_timestamp()")
    for _ in range(2):
        await letters.send_due()
        assert len(posted.letters) == 1
    assert (await letters.set(ada, SetNotify(code=posted.take_code()))).confirmed


async def test_a_code_confirms_no_address_given_meanwhile(
    database: Database, tenancy: Tenancy
) -> None:
    """A code that was right a moment ago confirms only the address that it went to."""
    sent: list[tuple[str, str]] = []

    async def send(address: str, words: tuple[str, str]) -> None:
        sent.append((address, words[1]))

    class Slow(LetterStore):
        async def try_code(self, tenant: Tenant, *, tries_max: int) -> bytes | None:
            found = await super().try_code(tenant, tries_max=tries_max)
            await letters.set(tenant, SetNotify(address="stranger@example.org"))
            return found

    async with served_hub(database) as served:
        ada = Tenant((await served.sign_up("ada")).account.account_id)
    letters = LetterService(Slow(tenancy), bytes(32), send)
    await letters.set(ada, SetNotify(address=ADDRESS))
    await letters.send_due()
    code = re.search(r"\d{8}", sent[0][1])
    assert code is not None
    with pytest.raises(CodeRefused):
        await letters.set(ada, SetNotify(code=code[0]))
    state = await letters.state(ada)
    assert (state.address, state.confirmed) == ("stranger@example.org", False)


async def test_switching_off_and_forgetting(database: Database, runner_tenancy: Tenancy) -> None:
    """Off means off at once, and an empty address leaves none behind."""
    async with mailbox() as box, posting_hub(database, box) as served:
        ada = await served.sign_up("ada")
        await confirmed(ada, box)
        assert not (await put(ada, enabled=False)).enabled
        await something_waits(runner_tenancy, ada)
        assert (await put(ada, address="")) == NotifyState(available=True)
        async with connected(database.owner_url) as owner:
            assert await owner.fetchval("select count(*) from mana.letters where address > ''") == 0
        assert box.letters == []


async def test_without_a_mail_server_there_are_no_letters(database: Database) -> None:
    """A hub that was not set up for mail says so, and keeps no address."""
    async with served_hub(database) as served:
        ada = await served.sign_up("ada")
        await put(ada, status=409, address=ADDRESS)
        answer = await ada.call("GET", PATH)
        assert msgspec.json.decode(answer.content, type=NotifyState) == NotifyState(available=False)


@pytest.mark.parametrize(
    ("url", "security", "port"),
    [
        ("smtps://ada:p%40ss@mail.example.org", "tls", 465),
        ("smtp://mail.example.org", "starttls", 587),
        ("smtp://127.0.0.1:2525", "none", 2525),
        ("smtp://ada:secret@localhost", "starttls", 587),
    ],
)
def test_mail_is_encrypted_on_the_way(url: str, security: str, port: int) -> None:
    """Only a server on this machine, without a password, is spoken to in plain."""
    post = Post.from_url(url, "mana@example.org")
    assert (post.security, post.port) == (security, port)
    assert "p@ss" not in repr(post)


@pytest.mark.parametrize(
    "url", ["mail.example.org", "http://mail.example.org", "smtp://", "smtp://a:b"]
)
def test_an_address_of_no_mail_server_is_refused(url: str) -> None:
    """A wrong setting is told at the start, by its name."""
    with pytest.raises(Invalid, match="MANA_SMTP_URL"):
        Post.from_url(url, "mana@example.org")


_ODD: Final = st.lists(
    st.sampled_from([*'ab.@=?%:_\r\n"é', "=?utf-8?q?", "?=", "=0A", "@example.org", "to:"]),
    max_size=8,
)


@given(st.text(max_size=60) | st.emails() | _ODD.map("".join))
def test_no_address_smuggles_a_header(text: str) -> None:
    """What is taken as an address is one line, one address, and nothing else."""
    try:
        address = require_address(text)
    except Invalid:
        return
    assert address.isprintable()
    assert not set(address) & set(" \r\n,;<>")
    letter = EmailMessage()
    letter["To"] = address
    assert [one.addr_spec for one in letter["To"].addresses] == [address]


@pytest.mark.parametrize(
    "address",
    [
        "=?utf-8?q?eve?=@example.org",
        "=?utf-8?q?=0A@ex.org",
        "=?utf-8?q??=@ex.org",
        ".:@example.org",
    ],
)
def test_an_address_that_a_header_would_decode_is_refused(address: str) -> None:
    """A letter goes to what was written, or the person is told that it is no address."""
    with pytest.raises(Invalid, match="no address"):
        require_address(address)
