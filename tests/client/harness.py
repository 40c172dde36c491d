"""Servers for the peers' tests: real ones in a thread, scripted ones, and a proxy that cuts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self, TypeVar

import anyio
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as websockets_serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.adapters.websockets import BroadcastServer, serve
from jobqueue_broadcast.client import Backoff
from tests.tcp import Proxy, TcpServer

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


class TcpThread:
    """A server of `tests.tcp`, run in the server's loop."""

    def __init__(self, thread: LoopThread, server: TcpServer) -> None:
        self.thread = thread
        self.server = server

    def start(self) -> Self:
        self.thread.run(self.server.__aenter__())
        return self

    def stop(self) -> None:
        self.thread.run(self.server.__aexit__())

    @property
    def connections(self) -> int:
        return self.server.connections

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.server.port}"


class ProxyThread(TcpThread):
    """`Proxy` of `tests.tcp`, run in the server's loop."""

    server: Proxy

    def __init__(self, thread: LoopThread, target: int) -> None:
        super().__init__(thread, Proxy(target))

    @property
    def from_client(self) -> int:
        return self.server.from_client

    def cut(self) -> None:
        self.thread.call(self.server.cut)

    def withhold(self) -> None:
        """Pass nothing on from the server any more."""
        self.thread.call(self.server.hold_answers)

    def flow(self) -> None:
        self.thread.call(self.server.release)


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
