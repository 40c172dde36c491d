"""A `websockets` connection as the core sees it: straight to its transport, or by its documented API.

`DirectConnection` is the only place that uses what `websockets` does not document: the `transport`
and `protocol` of a connection. `tests/adapters/test_websockets_contract.py` holds the oldest and
newest supported release to it. Where that ever fails, `DocumentedConnection` does the same through
`send()`, with a task per connection, one system call per frame.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.protocol import State

from jobqueue_broadcast.adapters.websockets.wires import PLAIN, DeflateWire
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.frames import TextWire, Wire

__all__ = [
    "WRITE_LIMIT",
    "BroadcastConnection",
    "DirectConnection",
    "DocumentedConnection",
    "PeerConnection",
    "supports_direct",
    "wire_of",
]

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], object]

WRITE_LIMIT = 64 * 1024
"""Bytes in a transport's buffer above which its connection is behind."""

_OPEN = State.OPEN
_TEXT = TextWire()


class BroadcastConnection(ServerConnection):
    """A server connection that says when its transport fills and drains.

    Give it to `websockets.asyncio.server.serve` as `create_connection`.
    """

    subscriber: Subscriber | None = None

    def pause_writing(self) -> None:
        """Called by the event loop when the write buffer is over its limit."""
        super().pause_writing()
        if self.subscriber is not None:
            self.subscriber.pause()

    def resume_writing(self) -> None:
        """Called by the event loop when the write buffer has drained."""
        super().resume_writing()
        if self.subscriber is not None:
            self.subscriber.resume()


class DirectConnection:
    """Writes batches straight to the transport: one system call for all frames of a turn."""

    __slots__ = ("_close_timeout", "_spawn", "_websocket", "wire")

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

    def attach(self, subscriber: Subscriber) -> None:
        """Let the transport's signals reach the subscriber."""
        self._websocket.subscriber = subscriber

    def write(self, batch: bytes, /) -> None:
        """Write frames that are ready to go."""
        websocket = self._websocket
        # After a close frame nothing may follow (RFC 6455, section 5.5.1).
        if websocket.protocol.state is _OPEN:
            websocket.transport.write(batch)

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
        self._subscriber: Subscriber | None = None
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._sending = False
        self._paused = False
        self._broken = False

    def attach(self, subscriber: Subscriber) -> None:
        """Tell this subscriber when too much waits."""
        self._subscriber = subscriber
        self._signal()

    def write(self, batch: tuple[bytes, ...], /) -> None:
        """Queue frames for the sending task."""
        if self._broken:
            return
        self._waiting.extend(batch)
        self._size += sum(map(len, batch))
        if not self._sending:
            self._sending = True
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
        finally:
            self._sending = False

    async def _close_after_sending(self, code: int, reason: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._close_timeout):
                while self._sending:
                    await asyncio.sleep(0.01)
        await _close(self._websocket, code, reason, self._close_timeout, self.abort)

    def _signal(self) -> None:
        if self._subscriber is None:
            return
        if not self._paused and self._size > WRITE_LIMIT:
            self._paused = True
            self._subscriber.pause()
        elif self._paused and self._size <= WRITE_LIMIT // 4:
            self._paused = False
            self._subscriber.resume()


PeerConnection: TypeAlias = DirectConnection | DocumentedConnection


async def _close(
    websocket: ServerConnection,
    code: int,
    reason: str,
    timeout: float,
    abort: Callable[[], None],
) -> None:
    """Close, or abort when the peer does not answer in time.

    `close()` waits for a full write buffer without a limit of its own, so there is one here.
    """
    try:
        async with asyncio.timeout(timeout):
            await websocket.close(code, reason)
    except TimeoutError:
        abort()


def supports_direct(websocket: ServerConnection) -> bool:
    """Tell whether a connection has what `DirectConnection` relies on."""
    transport = getattr(websocket, "transport", None)
    return (
        isinstance(websocket, BroadcastConnection)
        and isinstance(transport, asyncio.WriteTransport)
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
    return None
