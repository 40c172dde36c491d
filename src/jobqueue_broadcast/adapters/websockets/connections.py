"""A `websockets` connection as the core sees it: direct to its transport, or by documented API.

Only here is used what others do not document: of `websockets` the `transport`, `protocol` and
`recv_messages` of a connection, of asyncio the `max_size` of a transport.
`tests/adapters/test_websockets_contract.py` holds the oldest and newest supported release to it.
Where that ever fails for `DirectConnection`, `DocumentedConnection` does the same through `send()`,
with a task per connection, one system call per frame.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeAlias

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from jobqueue_broadcast.adapters.websockets.floods import FloodGuard
from jobqueue_broadcast.adapters.websockets.redaction import redact
from jobqueue_broadcast.adapters.websockets.wires import PLAIN, DeflateWire
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.frames import TextWire, Wire
from jobqueue_broadcast.rate_limit import TokenBucket

__all__ = [
    "READ_SIZE",
    "WRITE_LIMIT",
    "BroadcastConnection",
    "DirectConnection",
    "DocumentedConnection",
    "PeerConnection",
    "supports_direct",
    "wire_of",
]

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], object]

FindSubscriber: TypeAlias = Callable[[], Subscriber | None]
"""Returns the subscriber a connection was registered as, as soon as there is one."""

WRITE_LIMIT = 64 * 1024
"""Bytes in a transport's buffer above which its connection is behind."""

READ_SIZE = 4096
"""Bytes read from a socket, and given to `websockets`, at once."""

_OPEN = State.OPEN
_PINGS = (Opcode.PING, Opcode.PONG)
# The same where frames may be compressed. `websockets` makes all frames of what it is given before
# anyone can say "enough", and this may inflate to 1,032 times its size.
_DEFLATED_SIZE = 256
# In one message. Empty ones too are kept until it is whole; `websockets` 15 to 17.0 have no limit.
_FRAGMENTS = 1024
_TEXT = TextWire()
_TRANSPORT_METHODS = ("write", "abort", "get_write_buffer_size", "set_write_buffer_limits")


class BroadcastConnection(ServerConnection):
    """A server connection that says when its transport fills and drains.

    Give it, or better an endpoint's `connection_class`, to `websockets.asyncio.server.serve` as
    `create_connection`.

    It also holds back what was read while `max_queue` frames wait. `websockets` only stops reading
    then: 256 KiB that were read at once may be 2,500 compressed frames, which inflate to 150 MiB.

    Attributes:
        guard: Bounds what no gate and no session sees; `None`: nothing does.
    """

    guard: ClassVar[FloodGuard | None] = None

    _find: FindSubscriber | None = None
    _pings: TokenBucket | None = None
    _awaited = False
    _fragments = 0
    _full = False
    _held = b""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        redact(self.logger)

    def tell(self, find: FindSubscriber) -> None:
        """Let the transport's signals reach the subscriber, from the moment it is registered."""
        self._find = find

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop when the peer has connected."""
        _read_little(transport)
        super().connection_made(transport)
        # Its queue of frames calls these when `max_queue` of them wait, and when few do again.
        messages: Any = getattr(self, "recv_messages", None)
        if messages is not None:
            messages.pause, messages.resume = self._pause_reading, self._resume_reading
        if self.guard is not None:
            self._awaited = True
            self.guard.add(self)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop with what the peer sent."""
        if not self._awaited:
            self._feed(data)
        elif self.guard is not None and self.guard.take(self, len(data)):
            super().data_received(data)
            if self.request is not None:
                self._awaited = False
                self.guard.complete(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop when the peer is gone."""
        if self._awaited and self.guard is not None:
            self.guard.lost(self)
        if self._held:
            self._held = b""
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Called by the event loop when the write buffer is over its limit."""
        super().pause_writing()
        if self._find is not None and (subscriber := self._find()) is not None:
            subscriber.pause()

    def resume_writing(self) -> None:
        """Called by the event loop when the write buffer has drained."""
        super().resume_writing()
        if self._find is not None and (subscriber := self._find()) is not None:
            subscriber.resume()

    def process_event(self, event: Event) -> None:
        """Called by `websockets` with each frame received, after it has answered it."""
        if isinstance(event, Frame) and self.guard is not None and self._floods(event, self.guard):
            if not self.transport.is_closing():
                self.guard.flooded += 1
                self.transport.abort()
            return
        super().process_event(event)

    def send_data(self) -> None:
        """Called by `websockets` to write what it has to say: the pongs of one read at once."""
        writes = self.protocol.writes
        if len(writes) > 2:
            # An empty piece, always the last, stands for the end of the stream.
            end = [] if writes[-1] else [writes[-1]]
            self.protocol.writes = [b"".join(writes), *end]
        super().send_data()

    def _floods(self, frame: Frame, guard: FloodGuard) -> bool:
        if frame.opcode in _PINGS:
            if self._pings is None:
                self._pings = guard.ping_bucket()
            return not self._pings.take()
        if not frame.fin:
            self._fragments += 1
        elif self._fragments:
            self._fragments = 0
        return self._fragments > _FRAGMENTS

    def _feed(self, data: bytes) -> None:
        """Give `websockets` what was held back and this, until it has enough."""
        size = _DEFLATED_SIZE if self.protocol.extensions else READ_SIZE
        if self._held:
            data = self._held + data
        begin = 0
        while begin < len(data) and not self._full:
            super().data_received(data[begin : begin + size])
            begin += size
        if self._held or begin < len(data):
            self._held = data[begin:]

    def _pause_reading(self) -> None:
        self._full = True
        self.transport.pause_reading()

    def _resume_reading(self) -> None:
        self._full = False
        self._feed(b"")
        if not self._full:
            self.transport.resume_reading()


class DirectConnection:
    """Writes batches straight to the socket: one system call for all frames of a turn.

    The transport is passed by while its buffer is empty, and only then: its own `write` takes
    1 µs beside the 3.6 µs of the system call (2,000 connections). With a limit of 0 it says
    `pause_writing` exactly when its buffer holds anything, its connection is then behind, and the
    core writes nothing until the buffer is empty again. So nothing is ever interleaved.
    """

    __slots__ = ("_close_timeout", "_protocol", "_send", "_spawn", "_websocket", "wire")

    def __init__(
        self,
        websocket: BroadcastConnection,
        wire: Wire,
        spawn: Spawn,
        close_timeout: float,
    ) -> None:
        self._websocket = websocket
        self.wire = wire
        self._spawn = spawn
        self._close_timeout = close_timeout
        self._protocol = websocket.protocol
        self._send = _send_of(websocket.transport)

    def attach(self, find: FindSubscriber) -> None:
        """Let the transport's signals reach the subscriber: registering it already writes."""
        self._websocket.tell(find)
        if self._send is not _send_nothing:
            self._websocket.transport.set_write_buffer_limits(high=0)

    def write(self, batch: bytes, /) -> None:
        """Write frames that are ready to go."""
        # After a close frame nothing may follow (RFC 6455, section 5.5.1).
        if self._protocol.state is not _OPEN:
            return
        try:
            sent = self._send(batch)
        except OSError:
            # Full, or broken: the transport finds out which, and does what is to be done.
            sent = 0
        if sent != len(batch):
            self._websocket.transport.write(memoryview(batch)[sent:] if sent else batch)

    def backlog(self) -> int:
        """Return the bytes in the transport's buffer."""
        return self._websocket.transport.get_write_buffer_size()

    def close(self, code: int, reason: str, /) -> None:
        """Begin the closing handshake, bounded by the close timeout."""
        self._spawn(_close(self._websocket, code, reason, self._close_timeout, self.abort))

    def abort(self) -> None:
        """Drop the peer: nothing waits for a buffer that it does not empty."""
        self._websocket.transport.abort()


class DocumentedConnection:
    """Sends frame by frame with `send()`, from a task of its own."""

    def __init__(self, websocket: ServerConnection, spawn: Spawn, close_timeout: float) -> None:
        self.wire: Wire = _TEXT
        self._websocket = websocket
        self._spawn = spawn
        self._close_timeout = close_timeout
        self._find: FindSubscriber = _nobody
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._sending = False
        self._idle = asyncio.Event()
        self._paused = False
        self._broken = False

    def attach(self, find: FindSubscriber) -> None:
        """Tell this subscriber when too much waits."""
        self._find = find

    def write(self, batch: tuple[bytes, ...], /) -> None:
        """Queue frames for the sending task."""
        if self._broken:
            return
        self._waiting.extend(batch)
        self._size += sum(map(len, batch))
        if not self._sending:
            self._sending = True
            self._idle.clear()
            self._spawn(self._send_all())
        self._signal()

    def backlog(self) -> int:
        """Return the bytes not yet handed to `send()`."""
        return self._size

    def close(self, code: int, reason: str, /) -> None:
        """Begin the closing handshake after what was written."""
        self._spawn(self._close_after_sending(code, reason))

    def abort(self) -> None:
        """Drop the peer as fast as the documented API can: without a farewell."""
        self._broken = True
        self._waiting.clear()
        self._size = 0
        transport: asyncio.WriteTransport | None = getattr(self._websocket, "transport", None)
        if transport is not None:
            transport.abort()
        else:
            self._spawn(_close(self._websocket, 1001, "", 0.0, lambda: None))

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                payload = self._waiting.popleft()
                await self._websocket.send(payload, text=True)
                self._size -= len(payload)
                self._signal()
        except ConnectionClosed:
            self._broken = True
            self._waiting.clear()
            self._size = 0
        finally:
            self._sending = False
            self._idle.set()

    async def _close_after_sending(self, code: int, reason: str) -> None:
        if self._sending:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._close_timeout):
                    await self._idle.wait()
        await _close(self._websocket, code, reason, self._close_timeout, self.abort)

    def _signal(self) -> None:
        subscriber = self._find()
        if subscriber is None:
            return
        if not self._paused and self._size > WRITE_LIMIT:
            self._paused = True
            subscriber.pause()
        elif self._paused and self._size <= WRITE_LIMIT // 4:
            self._paused = False
            subscriber.resume()


PeerConnection: TypeAlias = DirectConnection | DocumentedConnection


def _nobody() -> None:
    return None


def _read_little(transport: Any) -> None:
    """Bound what is read at once: asyncio allocates 256 KiB for each read, 4 × `max_size`.

    Commands are small. A message of 64 KiB takes 16 reads, and 0.05 ms more than at once.

    There is no such bound for TLS, where asyncio has buffers of 256 KiB per connection, nor on
    uvloop, which has one such buffer for all of them.
    """
    if hasattr(transport, "max_size"):
        transport.max_size = READ_SIZE


async def _close(
    websocket: ServerConnection,
    code: int,
    reason: str,
    patience: float,
    abort: Callable[[], None],
) -> None:
    """Close, or abort when the peer does not answer in time.

    `close()` waits for a full write buffer without a limit of its own, so there is one here.
    """
    try:
        async with asyncio.timeout(patience):
            await websocket.close(code, reason)
    except TimeoutError:
        abort()


def _send_of(transport: asyncio.WriteTransport) -> Callable[[bytes], int]:
    """Return what writes to the socket itself, or `_send_nothing` where the transport must.

    TLS and uvloop have no such socket, and a handshake still in the buffer must go out first. It
    is a socket object and not its descriptor: once closed it refuses, whoever has the number now.
    """
    if transport.get_extra_info("sslcontext") is None and not transport.get_write_buffer_size():
        sock = getattr(transport.get_extra_info("socket"), "_sock", None)
        if isinstance(sock, socket.socket):
            return sock.send
    return _send_nothing


def _send_nothing(batch: bytes) -> int:
    return 0


def supports_direct(websocket: ServerConnection) -> bool:
    """Tell whether a connection has what `DirectConnection` relies on."""
    transport = getattr(websocket, "transport", None)
    return (
        isinstance(websocket, BroadcastConnection)
        # Not `isinstance`: the transports of uvloop are no subclasses of asyncio's.
        and all(callable(getattr(transport, name, None)) for name in _TRANSPORT_METHODS)
        and getattr(getattr(websocket, "protocol", None), "state", None) is _OPEN
    )


def wire_of(websocket: ServerConnection, deflate: dict[int, DeflateWire]) -> Wire | None:
    """Return the wire a connection shares; `None` when only `send()` can write to it.

    Args:
        websocket: A connection whose handshake is done.
        deflate: The compressing wires so far, by window bits.
    """
    if not supports_direct(websocket):
        return None
    extensions = websocket.protocol.extensions
    if not extensions:
        return PLAIN
    match extensions:
        case [PerMessageDeflate(local_no_context_takeover=True, local_max_window_bits=bits)]:
            if bits not in deflate:
                deflate[bits] = DeflateWire(bits)
            return deflate[bits]
        case _:
            # The host's own: a context per connection, or an extension we know nothing of.
            return None
