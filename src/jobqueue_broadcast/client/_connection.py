"""One WebSocket connection on anyio: `websockets`' sans-I/O protocol over a TCP or TLS stream.

asyncio and trio are thereby one code path. Reading, writing and keepalive are three tasks, of
which the reader is the caller's own: while it does not come back for the next message nothing is
read from the socket, so that TCP slows the server down.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
from anyio.abc import ByteStream
from msgspec import Struct
from websockets.client import ClientProtocol
from websockets.exceptions import PayloadTooBig
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import WebSocketURI

from jobqueue_broadcast.client._signal import Signal
from jobqueue_broadcast.errors import InvalidArgument

__all__ = ["Closed", "Connection", "Refused", "Unreachable", "Wire", "dial"]

_CHUNK = 64 * 1024
_LOST = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Wire(Struct, frozen=True, kw_only=True):
    """How to connect and what to put up with; see `connect_monitor` for the meaning of each."""

    ssl_context: ssl.SSLContext | None = None
    compression: bool = False
    max_size: int = 64 * 1024 * 1024
    open_timeout: float = 10.0
    ping_interval: float = 20.0
    ping_timeout: float = 20.0
    close_timeout: float = 1.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__[2:]:
            if not getattr(self, name) > 0:
                raise InvalidArgument(f"{name}: expected more than 0, got {getattr(self, name)!r}")


class Closed(NamedTuple):
    """How a connection ended: 1006 without a close frame."""

    code: int
    reason: str


class Refused(Exception):
    """The server answered the handshake with an HTTP status other than 101."""

    def __init__(self, status: int, reason: str, retry_after: str | None) -> None:
        super().__init__(status)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class Unreachable(Exception):
    """There was no intelligible answer to the handshake."""


@asynccontextmanager
async def dial(uri: WebSocketURI, token: str | None, wire: Wire) -> AsyncGenerator[Connection]:
    """Connect, shake hands, and close in the end, whatever happens in between.

    Raises:
        Refused: The server said no, by an HTTP status.
        Unreachable: It did not answer as a WebSocket server does.
        OSError, TimeoutError: It could not be reached.
    """
    protocol = ClientProtocol(
        uri,
        max_size=wire.max_size,
        extensions=[ClientPerMessageDeflateFactory()] if wire.compression else None,
    )
    with anyio.fail_after(wire.open_timeout):
        stream = await _open_stream(uri, wire)
    connection = Connection(stream, protocol, wire)
    try:
        with anyio.fail_after(wire.open_timeout):
            await connection.shake_hands(token)
        yield connection
    finally:
        await connection.close()


async def _open_stream(uri: WebSocketURI, wire: Wire) -> ByteStream:
    if not uri.secure:
        return await anyio.connect_tcp(uri.host, uri.port)
    try:
        return await _open_tls(uri, wire)
    except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
        raise Unreachable("the TLS handshake was cut off") from error


async def _open_tls(uri: WebSocketURI, wire: Wire) -> ByteStream:
    context = wire.ssl_context or ssl.create_default_context()
    # WebSocket has a closing handshake of its own; TLS's would only delay the end.
    return await anyio.connect_tcp(
        uri.host,
        uri.port,
        tls=True,
        ssl_context=context,
        tls_standard_compatible=False,
        tls_hostname=uri.host,
    )


class Connection:
    """One connection.

    Args:
        stream: The open TCP or TLS stream, which this connection closes.
        protocol: A protocol that has not sent its request yet.
        wire: The limits.
    """

    def __init__(self, stream: ByteStream, protocol: ClientProtocol, wire: Wire) -> None:
        self._stream = stream
        self._protocol = protocol
        self._wire = wire
        self._outgoing = Signal()
        self._heard = Signal()
        self._early: list[Any] = []
        self._fragments: list[bytes] = []
        self._receiving = False
        self._receives = 0
        self._sending = False
        self._silent = False

    async def shake_hands(self, token: str | None) -> None:
        """Ask for the upgrade and read the answer; errors are those of `dial`."""
        protocol = self._protocol
        request = protocol.connect()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        try:
            # Not by `send_request`, which logs every header at DEBUG, the credential included.
            await self._stream.send(request.serialize())
            while not (events := protocol.events_received()) and protocol.handshake_exc is None:
                await self._receive()
        except _LOST as error:
            raise Unreachable(f"{type(error).__name__} during the handshake") from error
        response = events[0] if events else None
        if protocol.handshake_exc is not None:
            if isinstance(response, Response) and response.status_code != 101:
                raise _refused(response, token)
            raise Unreachable("no valid answer to the handshake") from protocol.handshake_exc
        self._early = events[1:]

    def send(self, payload: bytes) -> None:
        """Send a text message; returns at once, and does nothing once the connection ends."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(payload)
            self._outgoing.notify()

    async def converse(self, received: Callable[[bytes], Awaitable[None]]) -> Closed:
        """Give each message to `received`, one after the other, until the connection ends.

        Raises:
            Exception: Whatever `received` raises.
        """
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write)
            tasks.start_soon(self._keep_alive, tasks.cancel_scope)
            try:
                await self._read(received)
            except Exception as error:  # noqa: BLE001
                # Raised below: within the group it would reach the caller as an ExceptionGroup.
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return self._closed()

    async def close(self) -> None:
        """Say goodbye if that can still be heard, and let go of the socket."""
        protocol = self._protocol
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self._wire.close_timeout):
                try:
                    if protocol.state is State.OPEN:
                        protocol.send_close(1000)
                    # A frame that was cut off half-way would make nonsense of the next.
                    if not self._sending and not self._silent:
                        await self._flush()
                        await self._drain()
                except _LOST:
                    pass
            await anyio.aclose_forcefully(self._stream)

    async def _drain(self) -> None:
        """Read to the end: closed with unread bytes, TCP would reset, and our goodbye be lost."""
        while self._protocol.state is State.CLOSING:
            await self._receive()
            self._protocol.events_received()

    async def _receive(self) -> None:
        """Give the protocol what comes next from the socket."""
        self._receives += 1
        self._receiving = True
        try:
            data = await self._stream.receive(_CHUNK)
        except _LOST:
            self._protocol.receive_eof()
        else:
            self._protocol.receive_data(data)
        finally:
            self._receiving = False
            self._heard.notify()

    async def _read(self, received: Callable[[bytes], Awaitable[None]]) -> None:
        events, self._early = self._early, []
        while True:
            for message in self._messages(events):
                await received(message)
            # After a close frame nothing follows, and the server may never close its side.
            if self._protocol.state is not State.OPEN:
                return
            await self._receive()
            events = self._protocol.events_received()

    def _messages(self, events: Iterable[Any]) -> Iterable[bytes]:
        """Yield the whole messages among some protocol events; see to the control frames."""
        for frame in events:
            if not isinstance(frame, Frame):
                continue
            if frame.opcode is Opcode.PING:
                self._outgoing.notify()
            elif frame.opcode not in (Opcode.PONG, Opcode.CLOSE):
                self._fragments.append(bytes(frame.data))
                if frame.fin:
                    fragments, self._fragments = self._fragments, []
                    yield fragments[0] if len(fragments) == 1 else b"".join(fragments)

    async def _write(self) -> None:
        """Send what the protocol has to say; a task apart, as the reader must not wait for it."""
        try:
            while True:
                await self._flush()
                await self._outgoing.wait()
        except _LOST:
            # The reader meets the end too, after what the server still had to say.
            return

    async def _flush(self) -> None:
        # Again until there is nothing: more may have come while the last was being sent.
        while batch := b"".join(self._protocol.data_to_send()):
            self._sending = True
            await self._stream.send(batch)
            self._sending = False

    async def _keep_alive(self, scope: anyio.CancelScope) -> None:
        """Ping, and end the conversation when nothing at all comes back (a half-open server).

        While the reader is held up by a slow caller, silence says nothing about the server.
        """
        while True:
            await anyio.sleep(self._wire.ping_interval)
            if self._protocol.state is not State.OPEN:
                return
            self._protocol.send_ping(b"")
            self._outgoing.notify()
            receives = self._receives
            # Whatever comes is a sign of life, a pong behind a long message included.
            with anyio.move_on_after(self._wire.ping_timeout):
                await self._heard.wait()
            if self._receiving and receives == self._receives:
                self._silent = True
                scope.cancel()
                return

    def _closed(self) -> Closed:
        protocol = self._protocol
        if self._silent:
            return Closed(1006, "no answer to a ping")
        if isinstance(protocol.parser_exc, PayloadTooBig):
            return Closed(1009, f"a frame larger than max_size, {self._wire.max_size} bytes")
        if protocol.state is State.CLOSING:
            # Its close code is told only after the end of the stream.
            protocol.receive_eof()
        return Closed(protocol.close_code or 1006, protocol.close_reason or "")


def _refused(response: Response, token: str | None) -> Refused:
    """Return what the server said, in one short line."""
    text = bytes(response.body or b"")[:1024].decode(errors="replace")
    if token:
        # A proxy that echoes the request must not bring the credential into a log.
        text = text.replace(token, "…")
    line = "".join(char for char in text.strip().partition("\n")[0] if char.isprintable())
    return Refused(
        response.status_code,
        line[:200] or response.reason_phrase,
        response.headers.get("Retry-After"),
    )
