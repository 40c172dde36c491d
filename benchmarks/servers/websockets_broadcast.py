"""`websockets`: a handler with `async for`, and its own `broadcast()`. `--deflate`, `--uvloop`."""

from __future__ import annotations

import sys

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

from benchmarks import frames
from benchmarks.servers.control import commands_for, obey
from benchmarks.servers.loops import run


async def main() -> None:
    connections: set[ServerConnection] = set()

    async def handle(connection: ServerConnection) -> None:
        connections.add(connection)
        try:
            async for _ in connection:
                pass
        except ConnectionClosed:
            pass
        finally:
            connections.discard(connection)

    def send(number: int, due: int | None) -> None:
        broadcast(connections, frames.payload(number, due))

    async with serve(
        handle,
        "127.0.0.1",
        0,
        compression="deflate" if "--deflate" in sys.argv else None,
        ping_interval=None,
    ) as server:
        port = int(next(iter(server.sockets)).getsockname()[1])
        await obey(port, commands_for(send))


if __name__ == "__main__":
    run(main())
