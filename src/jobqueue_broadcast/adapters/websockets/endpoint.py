"""What a `websockets` server needs to broadcast: a `process_request` and a connection handler.

`serve` is made of this; a host that runs its own server uses it directly::

    endpoint = WebSocketEndpoint(broadcaster, authenticate=...)
    async with websockets.asyncio.server.serve(
        endpoint.handle, host, port,
        process_request=endpoint.process_request, create_connection=BroadcastConnection,
        compression=None, max_size=65536, logger=redacted_logger(),
    ):
        async with endpoint.running():
            ...
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from inspect import isawaitable
from typing import Any
from weakref import WeakKeyDictionary

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from jobqueue_broadcast.adapters.websockets.connections import (
    BroadcastConnection,
    DirectConnection,
    DocumentedConnection,
    PeerConnection,
    wire_of,
)
from jobqueue_broadcast.adapters.websockets.gate import Admission, ConnectionLimits, Gate
from jobqueue_broadcast.adapters.websockets.wires import DeflateWire
from jobqueue_broadcast.auth import Authenticate, Authorize
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import CloseCode, IdTaken
from jobqueue_broadcast.handshake import Refusal, Refused
from jobqueue_broadcast.session import Ask, Cancel, Hooks, Session, SessionLimits, Submit

__all__ = ["WebSocketEndpoint"]

logger = logging.getLogger("jobqueue_broadcast")

_CLOSE_BATCH = 200


class WebSocketEndpoint:
    """Serves `/ws/monitor/{id}` and `/ws/client/{id}` on a `websockets` server.

    Args:
        broadcaster: What is broadcast.
        authenticate: Says who a peer is; async or not. `None`: everyone is one anonymous
            principal with every right.
        authorize: Whether a principal may do something with a job it did not submit; async or not.
        submit: Creates the job of a `submit_job`; async or not. `None`: answered `unsupported`.
        cancel: Cancels a job; async or not. `None`: answered `unsupported`.
        origins: The `Origin`s browsers may come from; `None`: the same host only.
        connection_limits: How many connections there may be.
        session_limits: What one connection may ask for.
        loopback_only: Whether the `Host` header must name the loopback interface.
        close_timeout: Seconds a peer has to answer a closing handshake.
        tick_interval: Seconds between the ticks of the broadcaster.
        direct: Whether to write straight to transports. `False` uses only the documented API of
            `websockets`, at one system call per frame.
    """

    def __init__(
        self,
        broadcaster: EventBroadcaster,
        *,
        authenticate: Authenticate | None = None,
        authorize: Authorize | None = None,
        submit: Submit | None = None,
        cancel: Cancel | None = None,
        origins: Iterable[str] | None = None,
        connection_limits: ConnectionLimits | None = None,
        session_limits: SessionLimits | None = None,
        loopback_only: bool = False,
        close_timeout: float = 5.0,
        tick_interval: float = 0.5,
        direct: bool = True,
    ) -> None:
        self.broadcaster = broadcaster
        self.gate = Gate(
            broadcaster,
            authenticate=authenticate,
            origins=origins,
            limits=connection_limits,
            loopback_only=loopback_only,
        )
        self._hooks = Hooks(authorize=authorize, submit=submit, cancel=cancel)
        self._session_limits = session_limits or SessionLimits()
        self._close_timeout = close_timeout
        self._tick_interval = tick_interval
        self._direct = direct
        self._deflate: dict[int, DeflateWire] = {}
        self._admitted: WeakKeyDictionary[ServerConnection, Admission] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscribers: dict[Subscriber, None] = {}

    async def process_request(
        self, websocket: ServerConnection, request: Request
    ) -> Response | None:
        """Let a handshake in, or answer it: for `websockets.asyncio.server.serve`."""
        address = websocket.remote_address
        remote = str(address[0]) if isinstance(address, tuple) and address else "local"
        try:
            admission = await self.gate.admit(request.path, request.headers, remote)
        except Refused as refused:
            return _response(websocket, refused.refusal)
        self._admitted[websocket] = admission
        return None

    async def handle(self, websocket: ServerConnection) -> None:
        """Serve one connection until it ends: for `websockets.asyncio.server.serve`."""
        admission = self._admitted.pop(websocket)
        connection = self._connection(websocket)
        self.gate.enter(admission)
        try:
            subscriber = self._register(admission, connection)
        except IdTaken:
            self.gate.leave(admission)
            await websocket.close(CloseCode.FORBIDDEN, "this id belongs to another principal")
            return
        self._subscribers[subscriber] = None
        try:
            connection.attach(subscriber)
            session = Session(self.broadcaster, subscriber, self._hooks, self._session_limits)
            await self._converse(websocket, session, admission)
        except ConnectionClosed:
            pass
        finally:
            del self._subscribers[subscriber]
            self.gate.leave(admission)
            self._unregister(subscriber, connection)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Bind the event loop and tick, for as long as the block lasts."""
        loop = asyncio.get_running_loop()
        self.broadcaster.bind(loop.call_soon, loop.call_soon_threadsafe)
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            self.broadcaster.unbind()

    async def close(self, grace: float) -> None:
        """Send everyone what was broadcast, close with 1001, abort who does not answer in time.

        Args:
            grace: Seconds in all.
        """
        deadline = asyncio.get_running_loop().time() + grace
        self.broadcaster.flush()
        await self._close_all(deadline)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._subscribers or self._tasks:
                    await asyncio.sleep(0.01)
        for subscriber in list(self._subscribers):
            subscriber.connection.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _close_all(self, deadline: float) -> None:
        """Close who keeps up at once, in batches; who is behind gets half of the time to catch up."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + (deadline - loop.time()) / 2
        while remaining := [each for each in self._subscribers if each.connected]:
            late = loop.time() >= patience
            ready = [each for each in remaining if late or not each.behind]
            for subscriber in ready[:_CLOSE_BATCH]:
                if subscriber.behind:
                    self.broadcaster.delivery.abort(subscriber)
                else:
                    self.broadcaster.delivery.close(
                        subscriber, CloseCode.GOING_AWAY, "the server is going away"
                    )
            await asyncio.sleep(0 if ready else 0.01)

    def _connection(self, websocket: ServerConnection) -> PeerConnection:
        wire = wire_of(websocket, self._deflate) if self._direct else None
        if wire is None or not isinstance(websocket, BroadcastConnection):
            return DocumentedConnection(websocket, self._spawn, self._close_timeout)
        return DirectConnection(websocket, wire, self._spawn, self._close_timeout)

    def _register(self, admission: Admission, connection: PeerConnection) -> Subscriber:
        target = admission.target
        if target.kind == "monitor":
            return self.broadcaster.add_monitor(
                target.id,
                connection,
                target.topics,
                principal=admission.principal,
                resume=target.resume,
            )
        return self.broadcaster.add_client(
            target.id, connection, principal=admission.principal, resume=target.resume
        )

    def _unregister(self, subscriber: Subscriber, connection: PeerConnection) -> None:
        if subscriber.kind == "monitor":
            self.broadcaster.remove_monitor(subscriber.id, connection)
        else:
            self.broadcaster.remove_client(subscriber.id, connection)

    async def _converse(
        self, websocket: ServerConnection, session: Session, admission: Admission
    ) -> None:
        await _caught_up(websocket, session.subscriber)
        await self._settle(session.open(admission.target.jobs))
        async for message in websocket:
            ask = session.receive(message)
            if ask is not None:
                await self._settle(ask)

    async def _settle(self, ask: Ask | None) -> None:
        """Carry a question to the host's hook and its answer back, until there is none left.

        In a task of its own: a hook that has begun ends, and its outcome is noted, even when the
        peer is gone in the meantime; a job just created would else have no owner.
        """
        if ask is None:
            return
        task = self._spawn(_settle(ask))
        await asyncio.shield(task)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_interval)
            try:
                self.broadcaster.tick()
            except Exception:
                logger.exception("a tick of the broadcaster failed")

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _caught_up(websocket: ServerConnection, subscriber: Subscriber) -> None:
    """Wait until a connection that resumed has reached the present: commands act on that."""
    if subscriber.caught_up:
        return
    reached = asyncio.Event()
    subscriber.when_caught_up(reached.set)
    waiting = [asyncio.create_task(reached.wait()), asyncio.create_task(websocket.wait_closed())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


async def _settle(ask: Ask | None) -> None:
    while ask is not None:
        try:
            result = ask.call()
            if isawaitable(result):
                result = await result
        except Exception as error:
            ask = ask.failed(error)
        else:
            ask = ask.answered(result)


def _response(websocket: ServerConnection, refusal: Refusal) -> Response:
    response = websocket.respond(refusal.status, refusal.text)
    for name, value in refusal.headers:
        response.headers[name] = value
    return response
