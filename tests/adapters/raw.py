"""A peer of bare sockets, which does what no WebSocket library would; and what tests wait with."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ANY_OTHER = 0.002


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own, in bounded time, and see that it leaves no task."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(100):
                await test(*args, **kwargs)
            await until(lambda: len(asyncio.all_tasks()) == 1)

        asyncio.run(bounded())

    return run


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - no event tells of what is not known yet
            await asyncio.sleep(ANY_OTHER)


def request(target: str, *headers: str, method: str = "GET", host: str = "localhost") -> bytes:
    """A good handshake, but for what is given."""
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def frame(payload: bytes, opcode: int = 1, *, final: bool = True, rsv: int = 0) -> bytes:
    """A masked frame; the mask is zero, so that the payload is to be read as it is."""
    first = bytes([(0x80 if final else 0) | rsv | opcode])
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2)
    else:
        length = b"\xff" + size.to_bytes(8)
    return first + length + bytes(4) + payload


class Raw:
    """A socket to a server on the loopback interface.

    Attributes:
        received: What came, and was not taken yet.
        ended: Whether the server ended the connection.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.ended = False

    @classmethod
    async def connect(cls, port: int, sent: bytes = b"", *, receive_buffer: int = 0) -> Raw:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        peer = cls(sock)
        await peer.send(sent)
        return peer

    async def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self) -> bool:
        """Read once; return whether there was something."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 16)
        except ConnectionError:
            data = b""
        self.received += data
        self.ended = not data
        return not self.ended

    async def head(self) -> str:
        """Return the head of the HTTP answer; empty when the server ended without one."""
        while b"\r\n\r\n" not in self.received and await self.receive():
            pass
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    async def status(self) -> int:
        """Return the status of the HTTP answer; 0 when the server ended without one."""
        head = await self.head()
        return int(head.split(" ", 2)[1]) if head else 0

    async def frame(self) -> tuple[int, bytes] | None:
        """Return the next frame's first byte and payload; `None` at the end."""
        while (cut := _first_frame(self.received)) is None:
            if not await self.receive():
                return None
        first, payload, self.received = cut
        return first, payload

    async def close_code(self) -> int | None:
        """Read on to the close frame and return its code; `None` when it ends without."""
        while (found := await self.frame()) is not None:
            if found[0] & 0x0F == 8:
                return int.from_bytes(found[1][:2])
        return None

    async def rest(self) -> bytes:
        """Read to the end and return all of it."""
        while await self.receive():
            pass
        return self.received

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def status_of(port: int, sent: bytes) -> int:
    """Send a handshake and return the status of the answer."""
    with await Raw.connect(port, sent) as peer:
        return await peer.status()


async def gather(*coroutines: Awaitable[Any]) -> list[Any]:
    return list(await asyncio.gather(*coroutines))


def _first_frame(data: bytes) -> tuple[int, bytes, bytes] | None:
    if len(data) < 2:
        return None
    size, begin = data[1] & 0x7F, 2
    if size == 126:
        size, begin = int.from_bytes(data[2:4]), 4
    elif size == 127:
        size, begin = int.from_bytes(data[2:10]), 10
    if len(data) < begin + size:
        return None
    return data[0], data[begin : begin + size], data[begin + size :]
