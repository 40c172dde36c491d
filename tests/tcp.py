"""TCP servers that leave no socket open behind them, and a proxy that withholds and cuts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


class TcpServer:
    """Calls `handle` for each connection and closes the connection when it returns."""

    def __init__(self, handle: Handler) -> None:
        self.connections = 0
        self.port = 0
        self._handle = handle
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        server, self._server = self._server, None
        assert server is not None
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(5):  # an aborted transport closes its socket in a later turn
            await asyncio.sleep(0)

    # Not a coroutine: a task cancelled before its first step would leave the transport open.
    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # accepted in the turn the server was closed in
            writer.transport.abort()
            return
        self.connections += 1
        self._writers.append(writer)
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The peer went away: what the tests that need such a server are about.
        with suppress(OSError, EOFError):
            await self._handle(reader, writer)
        writer.close()


class Proxy(TcpServer):
    """Passes TCP on to a port. `hold` stops that for both sides, unnoticed by either,
    `hold_answers` for what the target says, and `cut` resets every connection."""

    def __init__(self, target: int) -> None:
        super().__init__(self._join)
        self.target = target
        self.from_client = 0
        self._there: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._answering = asyncio.Event()
        self.release()

    def hold(self) -> None:
        self._open.clear()

    def hold_answers(self) -> None:
        self._answering.clear()

    def release(self) -> None:
        self._open.set()
        self._answering.set()

    def cut(self) -> None:
        for writer in [*self._writers, *self._there]:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        self._writers.clear()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._there.add(back)
        try:
            await asyncio.gather(
                self._pass(reader, back, self._open, counted=True),
                self._pass(there, writer, self._answering, self._open),
            )
        finally:
            back.transport.abort()
            self._there.discard(back)

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *gates: asyncio.Event,
        counted: bool = False,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if counted:
                    self.from_client += len(data)
                for gate in gates:
                    await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
