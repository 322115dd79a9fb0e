"""The smallest PostgreSQL client: prove over a socket that a server answers for its data.

Synchronous and without a driver, because the lifecycle runs before there is an event loop, and
because only `hub.db` speaks SQL for people's data.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

_PROTOCOL = 196_608  # version 3.0
_MESSAGE_MAX = 1 << 20


def answers_for(socket_path: Path, *, data: Path, timeout_s: float = 2.0) -> bool:
    """Answer whether the server behind the socket is up and serves exactly this data folder."""
    try:
        return Path(_ask(socket_path, "show data_directory", timeout_s)).samefile(data)
    except (OSError, ValueError, EOFError):
        return False


def _ask(socket_path: Path, query: str, timeout_s: float) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(socket_path))
        names = b"user\0postgres\0database\0postgres\0application_name\0mana-probe\0\0"
        connection.sendall(struct.pack("!ii", 8 + len(names), _PROTOCOL) + names)
        _until_ready(connection)
        text = query.encode() + b"\0"
        connection.sendall(b"Q" + struct.pack("!i", 4 + len(text)) + text)
        rows = _until_ready(connection)
        connection.sendall(b"X" + struct.pack("!i", 4))
    if not rows:
        raise ValueError("no row")
    length = struct.unpack_from("!i", rows[0], 2)[0]
    return rows[0][6 : 6 + length].decode()


def _until_ready(connection: socket.socket) -> list[bytes]:
    rows: list[bytes] = []
    while True:
        head = _exactly(connection, 5)
        kind, length = head[:1], struct.unpack("!i", head[1:])[0] - 4
        if not 0 <= length <= _MESSAGE_MAX:
            raise ValueError("not a PostgreSQL server")
        body = _exactly(connection, length)
        if kind == b"E" or (kind == b"R" and struct.unpack_from("!i", body)[0] != 0):
            raise ValueError("refused")
        if kind == b"D":
            rows.append(body)
        if kind == b"Z":
            return rows


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        piece = connection.recv(count - len(parts))
        if not piece:
            raise EOFError
        parts += piece
    return bytes(parts)
