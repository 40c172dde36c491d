"""The floor: frames that are ready, written to each connection's transport. `--uvloop`."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from benchmarks import frames
from benchmarks.servers.control import commands_for, obey
from benchmarks.servers.loops import run

_HEADER = bytes((0x81, frames.SIZE))


def _frame(size: int) -> bytes:
    """Return a ready frame of some size."""
    header = bytes((0x81, size)) if size < 126 else bytes((0x81, 126)) + size.to_bytes(2)
    return header + b'{"type":"update_job_progress"' + b" " * (size - 30) + b"}"


async def main() -> None:
    transports: list[asyncio.Transport] = []
    backlog: list[bytes] = []

    async def handle(connection: ServerConnection) -> None:
        transport = connection.transport
        if connection.request is not None and connection.request.path.startswith("/backlog"):
            transport.write(b"".join(backlog))
        else:
            transports.append(transport)
        try:
            async for _ in connection:
                pass
        except ConnectionClosed:
            pass
        finally:
            if transport in transports:
                transports.remove(transport)

    def send(number: int, due: int | None) -> None:
        frame = _HEADER + frames.payload(number, due).encode()
        for transport in transports:
            transport.write(frame)

    async def spread(events: float, per_turn: float, size: float) -> Any:
        """Each event to one connection, one after the other."""
        frame = _frame(int(size))
        turn = itertools.cycle(transports)

        def send_one(number: int, due: int | None) -> None:
            next(turn).write(frame)

        return await commands_for(send_one)["burst"](events, per_turn)

    async def retain(events: float, size: float) -> Any:
        backlog[:] = [_frame(int(size))] * int(events)
        return {}

    async with serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        port = int(next(iter(server.sockets)).getsockname()[1])
        await obey(port, commands_for(send) | {"spread": spread, "retain": retain})


if __name__ == "__main__":
    run(main())
