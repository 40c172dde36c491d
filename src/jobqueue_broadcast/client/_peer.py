"""What monitors and clients share: connecting, again and again, where the last one broke off."""

from __future__ import annotations

import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Self, TypedDict
from uuid import uuid4

import anyio
import msgspec
from anyio.abc import TaskGroup

from jobqueue_broadcast.client._connection import Connection, Refused, Unreachable, Wire, dial
from jobqueue_broadcast.client._endpoint import Endpoint, Token, TokenSource
from jobqueue_broadcast.client._frames import Envelope, decode_envelope
from jobqueue_broadcast.client._lane import Lane, raised_again
from jobqueue_broadcast.client._reconnect import Backoff, Reconnect
from jobqueue_broadcast.errors import CloseCode, ConnectionEnded, InvalidArgument
from jobqueue_broadcast.events import encode
from jobqueue_broadcast.positions import Position

__all__ = ["ConnectionOptions", "Peer", "new_message_id"]

logger = logging.getLogger("jobqueue_broadcast.client")

# The default of the server allows 50 commands a second: this many seconds make up for a burst.
_RATE_PAUSE = 1.0


class ConnectionOptions(TypedDict, total=False):
    """Options of `connect_monitor` and `connect_client` alike; all are optional.

    Attributes:
        ssl_context: For `wss://`; by default the system's certificates are trusted.
        compression: Whether to offer permessage-deflate (default: no).
        max_size: Bytes of one inbound message (default 64 MiB); a larger one ends the peer with
            `ConnectionEnded`, code 1009.
        open_timeout: Seconds for TCP and TLS, and again for the handshake (default 10).
        ping_interval: Seconds between keepalive pings (default 20).
        ping_timeout: Seconds of silence after a ping, until the connection counts as broken
            (default 20).
        close_timeout: Seconds for the closing handshake (default 1).
        backoff: How long to wait before connecting again.
    """

    ssl_context: ssl.SSLContext | None
    compression: bool
    max_size: int
    open_timeout: float
    ping_interval: float
    ping_timeout: float
    close_timeout: float
    backoff: Backoff


class Misunderstood(Exception):
    """The server sent what cannot follow: the connection is given up, and another continues."""


class Peer(ABC):
    """One monitor or client, over as many connections as it takes.

    Args:
        endpoint: Where to connect.
        token: The credential.
        position: What to continue after, if anything.
        options: See `ConnectionOptions`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        token: Token,
        position: Position | None,
        options: ConnectionOptions,
    ) -> None:
        settings: dict[str, Any] = dict(options)
        backoff = settings.pop("backoff", None) or Backoff()
        self._wire = Wire(**settings)
        self._endpoint = endpoint
        self._tokens = TokenSource(token)
        self._position: Position | None = position
        self._reconnect = Reconnect(backoff, anyio.current_time)
        self._lanes: tuple[Lane, ...] = ()
        self._connection: Connection | None = None
        self._tasks: TaskGroup | None = None
        self._ready = anyio.Event()
        self._failure: Exception | None = None
        self._pausing = False
        self._connections = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint!r})"

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now; when not, there is nothing to do but wait."""
        return self._connection is not None

    @property
    def connections(self) -> int:
        """How many connections there were so far."""
        return self._connections

    # --- what monitors and clients do differently ------------------------------------------------

    @abstractmethod
    def _parameters(self) -> Iterable[tuple[str, str]]:
        """Return the query parameters to connect with, beside `resume`."""

    @abstractmethod
    def _opened(self, send: Callable[[bytes], None]) -> None:
        """Go on over a new connection, whose greeting has just come."""

    @abstractmethod
    async def _received(self, frame: bytes, envelope: Envelope) -> None:
        """Take any frame but the greeting."""

    @abstractmethod
    def _ended(self, error: Exception) -> None:
        """Tell everyone who waits that there will be no other connection."""

    # --- the life of a peer ----------------------------------------------------------------------

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Self]:
        """Connect, and stay connected while the block lasts: for `connect_monitor` and its like."""
        failure: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._run)
            try:
                await self._until_ready()
                yield self
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001
                # Raised below: within the group it would reach the caller as an ExceptionGroup.
                failure = error
            finally:
                self._fail(ConnectionEnded(1000, "this peer was closed"))
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _until_ready(self) -> None:
        await self._ready.wait()
        if self._failure is not None:
            raise raised_again(self._failure)

    async def _run(self) -> None:
        try:
            while True:
                delay = await self._connect()
                logger.info("%r: connecting again in %.1f s", self, delay)
                await anyio.sleep(delay)
        except Exception as error:  # noqa: BLE001
            # Whatever it is, those who wait must hear of it instead of waiting for ever.
            self._fail(error)

    async def _connect(self) -> float:
        """Connect and stay until that ends; return the seconds to wait before the next attempt."""
        resume = "new" if self._position is None else str(self._position)
        uri = self._endpoint.uri([("resume", resume), *self._parameters()])
        token = await self._tokens.fetch()
        try:
            async with dial(uri, token, self._wire) as connection:
                try:
                    closed = await connection.converse(lambda frame: self._take(connection, frame))
                finally:
                    self._disconnected()
        except Refused as refused:
            logger.info("%r: refused with HTTP %d", self, refused.status)
            return self._reconnect.refused(refused.status, refused.reason, refused.retry_after)
        except ssl.SSLCertVerificationError:
            raise  # An OSError too; but a certificate does not become good by asking again.
        except (OSError, TimeoutError, Unreachable, Misunderstood) as error:
            logger.info("%r: %s: %s", self, type(error).__name__, error)
            return self._reconnect.failed()
        logger.info("%r: closed with %d", self, closed.code)
        delay = self._reconnect.closed(closed.code, closed.reason)
        if closed.code == CloseCode.UNAUTHENTICATED and not await self._tokens.renewed():
            raise ConnectionEnded(closed.code, closed.reason)
        return delay

    async def _take(self, connection: Connection, frame: bytes) -> None:
        try:
            envelope = decode_envelope(frame)
            if envelope.type in ("connected", "connection_established"):
                self._greeted(connection, envelope)
            else:
                await self._received(frame, envelope)
        except (msgspec.MsgspecError, InvalidArgument) as error:
            raise Misunderstood(f"a frame that is not of the protocol: {error}") from error

    def _greeted(self, connection: Connection, envelope: Envelope) -> None:
        self._connection = connection
        self._connections += 1
        self._reconnect.opened()
        if self._position is None and isinstance(envelope.position, str):
            self._position = Position.parse(envelope.position)
        self._opened(connection.send)
        self._ready.set()

    def _disconnected(self) -> None:
        self._connection = None
        for lane in self._lanes:
            lane.disconnect()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            for lane in self._lanes:
                lane.fail(error)
            self._ended(error)
            self._ready.set()

    # --- for both --------------------------------------------------------------------------------

    async def _ask(
        self,
        lane: Lane,
        message_id: str,
        command: msgspec.Struct,
        then: Callable[[], None] | None = None,
    ) -> Any:
        """Send a command, on as many connections as it takes, and return the answer."""
        if self._failure is not None:
            raise raised_again(self._failure)
        return await lane.ask(message_id, encode(command), then)

    def _follow_position(self, text: str) -> Position:
        """Return a frame's position.

        Raises:
            InvalidArgument: It is none.
            Misunderstood: It is of another epoch, which nothing announced. On the next connection
                the server will say `resync_required`.
        """
        position = Position.parse(text)
        if self._position is not None and position.epoch != self._position.epoch:
            raise Misunderstood("another epoch began")
        return position

    def _slow_down(self) -> None:
        """After `rate_limited`: wait, and send again whatever was not answered.

        The answer does not say to which command it is; all of them can be repeated.
        """
        if self._tasks is None:
            return
        # Held anew even during a pause: a reconnection in the meantime has released the lanes, and
        # what was sent since would be waited for without end.
        for lane in self._lanes:
            lane.hold()
        if not self._pausing:
            self._pausing = True
            self._tasks.start_soon(self._speed_up)

    async def _speed_up(self) -> None:
        await anyio.sleep(_RATE_PAUSE)
        self._pausing = False
        for lane in self._lanes:
            lane.release()


def new_message_id() -> str:
    """Return an id that no other command has."""
    return uuid4().hex
