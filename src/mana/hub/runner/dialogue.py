"""What the runner and its worker say to each other over a pipe: MessagePack, length first.

One worker serves one account, several runs at a time, and each message of a run bears its number,
which the runner gives. What belongs to the worker or to a space is sent once. The worker has no
database and no clock of authority: it asks for the audit, for tokens and for nothing else, and
hands back sealed bytes. No message to the parent carries plaintext; a reason is one of the
documented words.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from mana.domain.errors import Unavailable
from mana.domain.tables import DELETED_AT
from mana.models.settings import ModelSettings
from mana.planning.past import PAST_FIELDS
from mana.planning.ports import Purpose
from mana.protocol.messages import (
    ChangeMessage,
    DeviceCertificate,
    DeviceRevocation,
    Signature,
    SignedEntry,
    StateField,
    StateRecord,
)

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
_LENGTH_BYTES: Final = 4


class Message(msgspec.Struct, frozen=True, tag=True):
    """A message in one of the two directions."""


class RunMessage(Message, frozen=True):
    """A message of one run."""

    run: int


class GrantMaterial(msgspec.Struct, frozen=True):
    """An active grant as the register holds it."""

    header: str
    wrapped_key: str
    sealed_keys: str
    signature: Signature
    hub_signature: str


class Setup(Message, frozen=True):
    """What holds for every run of a worker; its first message, and sent once.

    `traced`: each phase of a run is told as it begins, however short it is.
    """

    hub_key: str
    models: ModelSettings
    traced: bool = False


class OpeningKey(Message, frozen=True):
    """A key of this runner that grants of this account are wrapped for; sent once."""

    key_id: str
    pem: str


class Standing(Message, frozen=True):
    """Who may decide in a space, as it is signed; sent once for each digest of its contents."""

    space_id: str
    digest: str
    log: list[SignedEntry]
    certificates: list[DeviceCertificate]
    revocations: list[DeviceRevocation]


class Job(RunMessage, frozen=True):
    """Everything else that a worker needs for one occurrence; sealed but for ids and times.

    `standing` and `runner_key_id` name what was sent before. `records` is the JSON of a list of
    `StateRecord`, as the database gives it; `earlier` that of what earlier runs wrote, which
    needs no `seq` and no `proofs`.
    """

    space_id: str
    mission_id: str
    agent_id: str
    account_id: str
    scheduled_for: str
    fence: int
    now_ms: int
    grant: GrantMaterial
    standing: str
    runner_key_id: str
    records: bytes
    earlier: bytes = b"[]"
    tokens_today: int = 0
    fail_point: str | None = None


class Cancel(RunMessage, frozen=True):
    """The run is to end at once; the worker answers with `Stopped`, whatever it was at."""


class AuditEntry(msgspec.Struct, frozen=True):
    """One reading, before it happens."""

    table_name: str
    record_id: str
    status: str = "ok"
    reason: str | None = None


class AuditAsk(RunMessage, frozen=True):
    """May these be opened? `checked`: the grant, role and fence must stand for it.

    `endpoints`: every place that the run may send what it reads to.
    """

    entries: list[AuditEntry]
    endpoints: list[str]
    checked: bool = True


class ReserveAsk(RunMessage, frozen=True):
    """Reserve tokens for one call of a model: for the prompt, and for the reply at most.

    Prices are millionths of the currency for a million tokens; None: nobody said one.
    """

    prompt_tokens: int
    completion_tokens_max: int
    endpoint: str
    model: str
    purpose: Purpose
    prompt_price: int | None
    completion_price: int | None


class SettleAsk(RunMessage, frozen=True):
    """Tell what a call used; no numbers leave the reservation counted in full.

    `released`: it is certain that no model worked on it, so that nothing counts.
    """

    reservation: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    released: bool = False


class PhaseNote(RunMessage, frozen=True):
    """How far the run is, in a phase and whole numbers; needs no answer."""

    name: str
    round: int = 0
    tool_calls: int = 0
    steps: int = 0
    heard: int = 0


class Counts(msgspec.Struct, frozen=True):
    """Figures of a run for metrics: names of tools and words of the code only.

    `reminders` by `producer:severity`; `folded`: the messages that went into each summary.
    """

    rounds: int = 0
    tool_calls: dict[str, int] = msgspec.field(default_factory=dict)
    opened: dict[str, int] = msgspec.field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reminders: dict[str, int] = msgspec.field(default_factory=dict)
    folded: list[int] = msgspec.field(default_factory=list)


class Finished(RunMessage, frozen=True):
    """The sealed and signed write of a run."""

    iteration_id: str
    changes: list[ChangeMessage]
    counts: Counts


class Stopped(RunMessage, frozen=True):
    """The run ends without an iteration: `outcome` is `skipped` or `failed`.

    `retry_after_ms`: how long an endpoint asks to be left alone, where it said so.
    """

    outcome: str
    reason: str
    detail: str | None = None
    retry_after_ms: int | None = None


class AuditDone(RunMessage, frozen=True):
    """The rows are committed; the head of the account's chain after them."""

    seq: int
    hash: str


class Granted(RunMessage, frozen=True):
    """A reservation was committed, for a reply that may be shorter; or a settlement noted."""

    reservation: str
    completion_tokens_max: int = 0


class Refused(RunMessage, frozen=True):
    """The parent does not allow it; `reason` is a documented word."""

    reason: str


ToWorker: TypeAlias = Setup | OpeningKey | Standing | Job | Cancel | AuditDone | Granted | Refused
ToRunner: TypeAlias = AuditAsk | ReserveAsk | SettleAsk | PhaseNote | Finished | Stopped

_RECORDS: Final = msgspec.json.Decoder(list[StateRecord])
_TOLD: Final = {table: (*sorted(names), DELETED_AT) for table, names in PAST_FIELDS.items()}
"""By table the paths that are read of what earlier runs wrote."""


_Told: Any = msgspec.defstruct(
    "_Told",
    [(path, StateField | None, None) for path in sorted(set().union(*_TOLD.values()))],
    frozen=True,
)


class _Earlier(msgspec.Struct, frozen=True, rename="camel"):
    """A record that an earlier run wrote. What is not told of it is passed over."""

    table: str
    id: str
    author_id: str
    visibility: str
    fields: _Told


_EARLIER: Final = msgspec.json.Decoder(list[_Earlier])


def records_of(job: Job) -> list[StateRecord]:
    """Return the sealed records of a job; raise ValidationError for rows of another form."""
    return _RECORDS.decode(job.records)


def earlier_of(job: Job) -> list[StateRecord]:
    """Return what earlier runs wrote, with the fields that are told of them and no others.

    Raises ValidationError for rows of another form.
    """
    return [
        StateRecord(one.table, one.id, one.author_id, one.visibility, 0, _told(one))
        for one in _EARLIER.decode(job.earlier)
        if one.table in _TOLD
    ]


def _told(record: _Earlier) -> dict[str, StateField]:
    found = ((path, getattr(record.fields, path)) for path in _TOLD[record.table])
    return {path: field for path, field in found if field is not None}


class WorkerLost(Unavailable):
    """The other side of the pipe ended before it had finished."""

    code = "WORKER_LOST"
    advice = "The occurrence is leased again."


class Channel(Protocol):
    """One end of the pipe."""

    async def send(self, message: Message) -> None:
        """Send one message."""

    def tell(self, message: Message) -> None:
        """Put one message on its way, without waiting for anything."""

    async def receive(self) -> Message:
        """Return the next message; raise WorkerLost at the end."""

    async def close(self) -> None:
        """Close this end."""


class SocketChannel:
    """One end over a connected socket."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kinds: Any
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(kinds)

    @classmethod
    async def over(cls, end: socket.socket, kinds: Any) -> SocketChannel:
        """Take over a connected socket; `kinds` are the messages that it receives."""
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer, kinds)

    async def send(self, message: Message) -> None:
        """Send one message."""
        if self._writer.is_closing():
            raise WorkerLost("the other side of the pipe is gone")
        try:
            self.tell(message)
            await self._writer.drain()
        except OSError:
            raise WorkerLost("the other side of the pipe is gone") from None

    def tell(self, message: Message) -> None:
        """Put one message on its way, without waiting for anything; to nobody where none is left."""
        if self._writer.is_closing():
            # Whoever reads learns that the other side is gone; some loops refuse to write then.
            return
        raw = msgspec.msgpack.encode(message)
        self._writer.write(len(raw).to_bytes(_LENGTH_BYTES, "big") + raw)

    async def receive(self) -> Message:
        """Return the next message; raise WorkerLost at the end or for other bytes."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            if length > MESSAGE_BYTES_MAX:
                raise WorkerLost("a message on the pipe is too long")
            raw = await self._reader.readexactly(length)
            found: Message = self._decoder.decode(raw)
        except (OSError, asyncio.IncompleteReadError, msgspec.DecodeError):
            raise WorkerLost("the other side of the pipe is gone") from None
        return found

    async def close(self) -> None:
        """Close this end."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return
