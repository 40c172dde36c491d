"""A server in a process of its own that says how much memory it took.

`memory_process.py MAX_SIZE ours|websockets`: prints its port, and for each line on standard input
the most that Python had allocated since the line before, less what it held then.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import tracemalloc
from collections.abc import AsyncGenerator

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as websockets_serve
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.adapters.websockets import SessionLimits, serve


@contextlib.asynccontextmanager
async def ours(max_size: int) -> AsyncGenerator[int]:
    """Our server, which answers as many commands as one sends."""
    limits = SessionLimits(command_rate=1e6, command_burst=1_000_000)
    async with serve(
        EventBroadcaster(),
        "127.0.0.1",
        0,
        compression=True,
        max_size=max_size,
        session_limits=limits,
    ) as server:
        yield server.port


@contextlib.asynccontextmanager
async def control(max_size: int) -> AsyncGenerator[int]:
    """`websockets` alone, which takes every message and drops it."""

    async def handle(websocket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for _ in websocket:
                pass

    extension = ServerPerMessageDeflateFactory(
        server_no_context_takeover=True, client_no_context_takeover=True, client_max_window_bits=12
    )
    async with websockets_serve(
        handle, "127.0.0.1", 0, compression=None, extensions=[extension], max_size=max_size
    ) as server:
        yield server.sockets[0].getsockname()[1]


async def main(max_size: int, kind: str) -> None:
    """Serve until standard input ends."""
    ended = asyncio.Event()
    held = 0

    def measure() -> None:
        nonlocal held
        if not os.read(0, 1):
            ended.set()
            return
        peak = tracemalloc.get_traced_memory()[1]
        print(peak - held, flush=True)
        gc.collect()
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]

    async with (ours if kind == "ours" else control)(max_size) as port:
        tracemalloc.start()
        asyncio.get_running_loop().add_reader(0, measure)
        print(port, flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
