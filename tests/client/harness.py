"""Servers for the peers' tests: real ones in a thread, scripted ones, and a proxy that cuts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import anyio
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as websockets_serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.adapters.websockets import BroadcastServer, serve
from jobqueue_broadcast.client import Backoff

T = TypeVar("T")

# Quick, but still random.
BACKOFF = Backoff(base=0.01, cap=0.05, stable_after=60.0)


class LoopThread:
    """An asyncio loop in a thread: the server's side, whatever the peers run on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return self.run(run())

    def close(self) -> None:
        async def settle() -> None:
            for _ in range(5):  # an aborted transport closes its socket in a later turn
                await asyncio.sleep(0)

        self.run(settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class RealServer:
    """`serve` in a loop of its own. Jobs submitted are named `<job_type>-<n>`."""

    def __init__(self, thread: LoopThread, **arguments: Any) -> None:
        self.thread = thread
        self.broadcaster = EventBroadcaster(**arguments.pop("broadcaster", {}))
        self.submitted: list[str] = []
        self.cancelled: list[str] = []
        self._arguments = {
            "submit": self._submit,
            "cancel": lambda job_id, principal: self.cancelled.append(job_id),
            **arguments,
        }
        self._server: BroadcastServer | None = None
        self.port = arguments.pop("port", 0)

    def start(self) -> RealServer:
        arguments = {key: value for key, value in self._arguments.items() if key != "port"}
        server = serve(self.broadcaster, "127.0.0.1", self.port, **arguments)
        self._server = self.thread.run(server.start())
        self.port = self._server.port
        return self

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            self.thread.run(server.close(1.0))

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def broadcast(self, *events: Any) -> None:
        def broadcast() -> None:
            for event in events:
                self.broadcaster.broadcast(event)

        self.thread.call(broadcast)

    def stats(self) -> Any:
        return self.thread.call(self.broadcaster.stats)

    def _submit(self, command: Any, principal: Any) -> str:
        self.submitted.append(f"{command.job_type}-{len(self.submitted)}")
        return self.submitted[-1]


class Proxy:
    """Passes TCP on until told otherwise."""

    def __init__(self, thread: LoopThread, target: int) -> None:
        self.thread = thread
        self.target = target
        self.connections = 0
        self.from_client = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._deaf = False
        self._server: asyncio.Server | None = None
        self.port = 0

    def start(self) -> Proxy:
        async def start() -> None:
            self._server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]

        self.thread.run(start())
        return self

    def stop(self) -> None:
        async def stop() -> None:
            assert self._server is not None
            self._server.close()
            self._cut()
            self._flowing.set()

        self.thread.run(stop())

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection."""
        self.thread.call(self._cut)

    def withhold(self) -> None:
        """Pass nothing on from the server any more."""
        self.thread.call(self._flowing.clear)

    def flow(self) -> None:
        self.thread.call(self._flowing.set)

    def _cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there_writer}
        await asyncio.gather(
            self._pass(reader, there_writer, counted=True), self._pass(there_reader, writer)
        )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if counted:
                    self.from_client += len(data)
                else:
                    await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
        self._writers.discard(writer)


class Visit:
    """One connection to a scripted server."""

    def __init__(self, websocket: ServerConnection) -> None:
        self.websocket = websocket
        assert websocket.request is not None
        self.path = websocket.request.path
        self.headers = websocket.request.headers

    async def greet(self, position: str = "e:0") -> None:
        kind = "connected" if "/monitor/" in self.path else "connection_established"
        await self.send(type=kind, position=position)

    async def send(self, **frame: Any) -> None:
        await self.websocket.send(json.dumps({"timestamp": 1, **frame}))

    async def receive(self, *types: str) -> dict[str, Any]:
        """Return the next command of one of these types; a client's fence is answered."""
        while True:
            frame: dict[str, Any] = json.loads(await self.websocket.recv())
            if frame["type"] in types:
                return frame
            if frame["type"] == "unsubscribe_progress":
                await self.send(
                    type="unsubscribed", job_id=frame["job_id"], message_id=frame["message_id"]
                )

    async def stay(self) -> None:
        """Answer fences until the peer goes away."""
        await self.receive("nothing")


Script = Callable[[Visit], Coroutine[Any, Any, None]]


class ScriptedServer:
    """Plays one script per connection, the last one again and again."""

    def __init__(self, thread: LoopThread, *scripts: Script) -> None:
        self.thread = thread
        self.scripts = list(scripts)
        self.paths: list[str] = []
        self.authorizations: list[str | None] = []
        self.refusals: list[tuple[int, dict[str, str], str]] = []
        self._server: Server | None = None
        self.port = 0

    def start(self) -> ScriptedServer:
        async def start() -> None:
            self._server = await websockets_serve(
                self._handle,
                "127.0.0.1",
                0,
                process_request=self._process_request,
                max_size=None,
                ping_interval=None,
                close_timeout=1,
            )
            self.port = next(iter(self._server.sockets)).getsockname()[1]

        self.thread.run(start())
        return self

    def stop(self) -> None:
        async def stop() -> None:
            assert self._server is not None
            self._server.close()
            await self._server.wait_closed()

        self.thread.run(stop())

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def _process_request(self, websocket: ServerConnection, request: Request) -> Response | None:
        self.paths.append(request.path)
        self.authorizations.append(request.headers.get("Authorization"))
        if not self.refusals:
            return None
        status, headers, text = self.refusals.pop(0)
        response = websocket.respond(status, text)
        for name, value in headers.items():
            response.headers[name] = value
        return response

    async def _handle(self, websocket: ServerConnection) -> None:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        with contextlib.suppress(ConnectionClosed):
            await script(Visit(websocket))


@contextmanager
def loop_thread() -> Generator[LoopThread]:
    thread = LoopThread()
    try:
        yield thread
    finally:
        thread.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; the test's own time limit says when it will not come."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.005)


@asynccontextmanager
async def in_time(seconds: float = 20.0) -> AsyncIterator[None]:
    """Fail rather than hang: a bound that only a fault reaches."""
    with anyio.fail_after(seconds):
        yield
