"""A model endpoint for the measurements: OpenAI's form, one fixed plan, after a fixed time.

`python -m bench.model <milliseconds>` prints its port and serves until its input ends. The first
call of a run plans one task, the second closes it, so a run is two calls.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

_CALL = {
    "id": "call-1",
    "type": "function",
    "function": {
        "name": "create_task",
        "arguments": json.dumps({"title": "Call the plumber", "rationale": "It is in a note."}),
    },
}


def _answer(message: dict[str, Any], finish: str) -> bytes:
    body = json.dumps(
        {
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 1_500, "completion_tokens": 40},
        }
    ).encode()
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_PLANS = _answer({"role": "assistant", "content": None, "tool_calls": [_CALL]}, "tool_calls")
_CLOSES = _answer({"role": "assistant", "content": "One task planned."}, "stop")


async def _serve(delay_s: float) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                place = head.index(b"content-length:") + 15
                length = int(head[place : head.index(b"\r\n", place)])
                body = await reader.readexactly(length)
                if delay_s:
                    await asyncio.sleep(delay_s)
                writer.write(_CLOSES if b'"role":"tool"' in body.replace(b" ", b"") else _PLANS)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]) / 1_000))
