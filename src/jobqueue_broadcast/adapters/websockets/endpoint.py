"""What a `websockets` server needs to broadcast: a `process_request` and a connection handler.

`serve` is made of this; a host that runs its own server uses it directly::

    endpoint = WebSocketEndpoint(broadcaster, authenticate=...)
    async with websockets.asyncio.server.serve(
        endpoint.handle, host, port,
        process_request=endpoint.process_request, create_connection=endpoint.connection_class,
        compression=None, max_size=65536,
    ):
        async with endpoint.running():
            ...
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from inspect import isawaitable
from typing import Any
from weakref import WeakKeyDictionary

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from jobqueue_broadcast.adapters.websockets.connections import (
    BroadcastConnection,
    DirectConnection,
    DocumentedConnection,
    PeerConnection,
    wire_of,
)
from jobqueue_broadcast.adapters.websockets.floods import FloodGuard
from jobqueue_broadcast.adapters.websockets.gate import Admission, ConnectionLimits, Gate
from jobqueue_broadcast.adapters.websockets.remote import LOCAL
from jobqueue_broadcast.adapters.websockets.stats import EndpointStats
from jobqueue_broadcast.adapters.websockets.wires import DeflateWire
from jobqueue_broadcast.auth import Authenticate, Authorize
from jobqueue_broadcast.backplane import RemoteBackplane
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import CloseCode, IdTaken, InvalidArgument, Replaced
from jobqueue_broadcast.handshake import Refusal, Refused, Target
from jobqueue_broadcast.session import Ask, Cancel, Hooks, Session, SessionLimits, Submit

__all__ = ["WebSocketEndpoint"]

logger = logging.getLogger("jobqueue_broadcast")

_CLOSE_BATCH = 200
_FORGOTTEN = Request("", Headers())
_BACKPLANE_PATIENCE = 5.0


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
        trusted_proxies: Addresses and networks of the proxies whose `X-Forwarded-For` is believed,
            `"local"` for one on a Unix socket; from anyone else it is ignored.
        close_timeout: Seconds a peer has to answer a closing handshake.
        tick_interval: Seconds between the ticks of the broadcaster.
        direct: Whether to write straight to transports. `False` uses only the documented API of
            `websockets`, at one system call per frame.

    Attributes:
        broadcaster: What is broadcast.
        gate: What lets handshakes in.
        connection_class: What to give to `websockets` as `create_connection`; on this endpoint's
            behalf it bounds half requests and pings.
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
        trusted_proxies: Iterable[str] = (),
        close_timeout: float = 5.0,
        tick_interval: float = 0.5,
        direct: bool = True,
    ) -> None:
        limits = connection_limits or ConnectionLimits()
        self.broadcaster = broadcaster
        self.gate = Gate(
            broadcaster,
            authenticate=authenticate,
            origins=origins,
            limits=limits,
            loopback_only=loopback_only,
            trusted_proxies=trusted_proxies,
        )
        self._guard = FloodGuard(
            broadcaster.clock,
            pending=limits.pending,
            request_size=limits.request_size,
            ping_rate=limits.ping_rate,
            ping_burst=limits.ping_burst,
        )
        self.connection_class = _guarded_by(self._guard)
        self._hooks = Hooks(authorize=authorize, submit=submit, cancel=cancel)
        self._session_limits = session_limits or SessionLimits()
        self._close_timeout = close_timeout
        self._tick_interval = tick_interval
        self._direct = direct
        self._deflate: dict[int, DeflateWire] = {}
        self._admitted: WeakKeyDictionary[ServerConnection, Admission] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: dict[Subscriber, Session] = {}
        self._closed: Counter[int] = Counter()
        self._errors: Counter[str] = Counter()

    async def process_request(
        self, websocket: ServerConnection, request: Request
    ) -> Response | None:
        """Let a handshake in, or answer it: for `websockets.asyncio.server.serve`."""
        try:
            admission = await self.gate.admit(
                request.path, request.headers, _host_of(websocket.remote_address)
            )
        except Refused as refused:
            return _response(refused.refusal)
        self._admitted[websocket] = admission
        return None

    async def handle(self, websocket: ServerConnection) -> None:
        """Serve one connection until it ends: for `websockets.asyncio.server.serve`."""
        admission = self._admitted.pop(websocket, None)
        if admission is None:
            raise InvalidArgument("expected `process_request` to be given to the server as well")
        # Nothing is awaited between `admit` and here, so that what it checked still holds.
        self.gate.enter(admission)
        try:
            await self._serve(websocket, admission)
        finally:
            self.gate.leave(admission)

    def stats(self) -> EndpointStats:
        """Return the figures of this endpoint."""
        return EndpointStats(
            connections=self.gate.connections,
            principals=self.gate.principals,
            addresses=self.gate.addresses,
            requests_pending=self._guard.pending,
            authenticating=self.gate.authenticating,
            admitted_total=self.gate.admitted,
            refused_total=dict(self.gate.refused),
            closed_total=dict(self._closed),
            errors_total=dict(self._errors),
            requests_dropped_total=self._guard.dropped,
            requests_too_large_total=self._guard.too_large,
            requests_unfinished_total=self._guard.unfinished,
            flooded_total=self._guard.flooded,
        )

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Bind the event loop, tick, and run a remote backplane, for as long as the block lasts.

        A backplane that the host runs itself is left to it.
        """
        loop = asyncio.get_running_loop()
        self.broadcaster.bind(loop.call_soon, loop.call_soon_threadsafe)
        ticking = asyncio.create_task(self._tick())
        try:
            async with _run_backplane(self.broadcaster.remote):
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
        self._guard.drop_all()
        self.broadcaster.flush()
        await self._close_all(deadline)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._sessions or self._tasks:  # noqa: ASYNC110 - only while closing
                    await asyncio.sleep(0.01)
        for subscriber in list(self._sessions):
            subscriber.connection.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _close_all(self, deadline: float) -> None:
        """Close who keeps up at once, in batches; give who is behind half of the time."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + (deadline - loop.time()) / 2
        while remaining := [each for each in self._sessions if each.connected]:
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

    async def _serve(self, websocket: ServerConnection, admission: Admission) -> None:
        if isinstance(websocket, BroadcastConnection):
            # 1.5 KiB for as long as the connection lasts, and perhaps a token in the path.
            websocket.request, websocket.response = _FORGOTTEN, None
        connection = self._connection(websocket)
        connection.attach(lambda: self._find(admission.target, connection))
        try:
            subscriber = self._register(admission, connection)
        except IdTaken:
            await websocket.close(CloseCode.FORBIDDEN, "this id belongs to another principal")
            return
        except Replaced:
            await websocket.close(CloseCode.REPLACED, "replaced by a newer connection")
            return
        session = Session(
            self.broadcaster, subscriber, self._hooks, self._session_limits, self._errors
        )
        self._sessions[subscriber] = session
        try:
            await self._converse(websocket, session, admission)
        except ConnectionClosed:
            pass
        finally:
            del self._sessions[subscriber]
            self._unregister(subscriber, connection)
            self._closed[websocket.close_code or 1006] += 1

    def _register(self, admission: Admission, connection: PeerConnection) -> Subscriber:
        target, principal, grant = admission.target, admission.principal, admission.grant
        if target.kind == "monitor":
            return self.broadcaster.add_monitor(
                target.id,
                connection,
                target.topics,
                principal=principal,
                resume=target.resume,
                grant=grant,
            )
        return self.broadcaster.add_client(
            target.id, connection, principal=principal, resume=target.resume, grant=grant
        )

    def _find(self, target: Target, connection: PeerConnection) -> Subscriber | None:
        """Return what a connection is registered as: while it is being registered, too."""
        peers = self.broadcaster.monitors if target.kind == "monitor" else self.broadcaster.clients
        found = peers.get(target.id)
        return found if found is not None and found.connection is connection else None

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


@asynccontextmanager
async def _run_backplane(backplane: RemoteBackplane | None) -> AsyncGenerator[None]:
    """Run a remote backplane that nobody else runs; at the end what was published gets out."""
    if backplane is None or backplane.running:
        yield
        return
    running = asyncio.create_task(backplane.run())
    try:
        # Peers that come before the states were taken would be told of a gap for nothing. When
        # the engine is away they are let in all the same, and told.
        with suppress(TimeoutError):
            async with asyncio.timeout(_BACKPLANE_PATIENCE):
                await backplane.wait_ready()
        yield
        await backplane.flush()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


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
        except Exception as error:  # noqa: BLE001 - the session logs it and answers the peer
            ask = ask.failed(error)
        else:
            ask = ask.answered(result)


def _host_of(address: Any) -> str:
    # A pair for IPv4, a quadruple for IPv6, a string for Unix sockets, `None` when it is gone.
    return LOCAL if address is None or isinstance(address, str) else str(address[0])


def _guarded_by(flood_guard: FloodGuard) -> type[BroadcastConnection]:
    class GuardedConnection(BroadcastConnection):
        """A connection guarded on behalf of one endpoint."""

        guard = flood_guard

    return GuardedConnection


def _response(refusal: Refusal) -> Response:
    # Not `websocket.respond`: it raises for a status of the host's that `http` does not name.
    try:
        phrase = HTTPStatus(refusal.status).phrase
    except ValueError:
        phrase = "Refused"
    body = refusal.text.encode(errors="replace")
    headers = Headers(
        {
            "Connection": "close",
            "Content-Length": str(len(body)),
            "Content-Type": "text/plain; charset=utf-8",
            "X-Content-Type-Options": "nosniff",
        }
    )
    for name, value in refusal.headers:
        headers[name] = value
    return Response(refusal.status, phrase, headers, body)
