"""What the runner and its worker say to each other over a pipe: MessagePack, length first.

The worker has no database and no clock of authority: it asks for the audit, for tokens and
for nothing else, and hands back sealed bytes. No message to the parent carries plaintext; a
reason is one of the documented words.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from mana.domain.errors import Unavailable
from mana.protocol.messages import (
    ChangeMessage,
    DeviceCertificate,
    DeviceRevocation,
    Signature,
    SignedEntry,
    StateRecord,
)

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
_LENGTH_BYTES: Final = 4


class Message(msgspec.Struct, frozen=True, tag=True):
    """A message in one of the two directions."""


class GrantMaterial(msgspec.Struct, frozen=True):
    """An active grant as the register holds it."""

    header: str
    wrapped_key: str
    sealed_keys: str
    signature: Signature
    hub_signature: str


class ModelSpec(msgspec.Struct, frozen=True):
    """Which model the worker calls; without an address the offline rules."""

    url: str = ""
    key: str = ""
    model: str = ""


class Job(Message, frozen=True):
    """Everything a worker needs for one occurrence; sealed but for ids and times."""

    space_id: str
    mission_id: str
    agent_id: str
    account_id: str
    scheduled_for: str
    fence: int
    now_ms: int
    grant: GrantMaterial
    log: list[SignedEntry]
    certificates: list[DeviceCertificate]
    revocations: list[DeviceRevocation]
    records: list[StateRecord]
    runner_key: str
    hub_key: str
    model: ModelSpec
    tokens_today: int = 0
    fail_point: str | None = None


class AuditEntry(msgspec.Struct, frozen=True):
    """One reading, before it happens."""

    table_name: str
    record_id: str
    status: str = "ok"
    reason: str | None = None


class AuditAsk(Message, frozen=True):
    """May these be opened? `checked`: the grant, role and fence must stand for it."""

    entries: list[AuditEntry]
    endpoint: str | None
    checked: bool = True


class ReserveAsk(Message, frozen=True):
    """Reserve tokens for one call of a model: for the prompt, and for the reply at most."""

    prompt_tokens: int
    completion_tokens_max: int


class SettleAsk(Message, frozen=True):
    """Tell what a call used; no numbers leave the reservation counted in full."""

    reservation: str
    prompt_tokens: int | None
    completion_tokens: int | None


class PhaseNote(Message, frozen=True):
    """The run entered a phase; needs no answer."""

    name: str


class Counts(msgspec.Struct, frozen=True):
    """Figures of a run for metrics: names of tools and words of the code only."""

    rounds: int = 0
    calls: dict[str, int] = msgspec.field(default_factory=dict)
    opened: dict[str, int] = msgspec.field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Finished(Message, frozen=True):
    """The sealed and signed write of a run."""

    iteration_id: str
    changes: list[ChangeMessage]
    counts: Counts


class Stopped(Message, frozen=True):
    """The run ends without an iteration: `outcome` is `skipped` or `failed`."""

    outcome: str
    reason: str
    detail: str | None = None


class AuditDone(Message, frozen=True):
    """The rows are committed; the head of the account's chain after them."""

    seq: int
    hash: str


class Granted(Message, frozen=True):
    """A reservation was committed, for a reply that may be shorter; or a settlement noted."""

    reservation: str
    completion_tokens_max: int = 0


class Refused(Message, frozen=True):
    """The parent does not allow it; `reason` is a documented word."""

    reason: str


ToWorker: TypeAlias = Job | AuditDone | Granted | Refused
ToRunner: TypeAlias = AuditAsk | ReserveAsk | SettleAsk | PhaseNote | Finished | Stopped


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
        try:
            self.tell(message)
            await self._writer.drain()
        except OSError:
            raise WorkerLost("the other side of the pipe is gone") from None

    def tell(self, message: Message) -> None:
        """Put one message on its way, without waiting for anything."""
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
