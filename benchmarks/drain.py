"""The reading end: a process that opens the connections, reads what comes, and counts it.

It must never be what limits a server. One loop takes whatever is there into one buffer that is
never looked at, except on one connection, the sample: there every frame is parsed, inflated where
compressed, and counted. A frame that any other connection missed shows as a difference in bytes.

After each round of reading it naps for a millisecond: a reader that sleeps in the kernel for every
frame would be woken by every `send`, and the server would be charged for that.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

from benchmarks import frames

_SCRATCH = 1 << 20
_BATCH = 64


class Sample:
    """Parses the frames of one connection.

    Attributes:
        size: Bytes read.
        frames: Frames read.
        ages: How old each frame was when read, in ns, where it says when it was made.
    """

    def __init__(self, takeover: bool) -> None:
        self._buffer = bytearray()
        self._takeover = takeover
        self._inflate = zlib.decompressobj(-15)
        self.size = 0
        self.frames = 0
        self.ages: list[int] = []

    def feed(self, data: memoryview) -> None:
        self.size += len(data)
        buffer = self._buffer
        buffer += data
        at = 0
        while (end := _frame_end(buffer, at)) is not None:
            first, begin, after = end
            self._take(first, bytes(buffer[begin:after]))
            at = after
        del buffer[:at]

    def mark(self) -> None:
        self.size = self.frames = 0
        self.ages = []

    def _take(self, first: int, body: bytes) -> None:
        if first & 0x8F != 0x81:
            raise AssertionError(f"expected a final text frame, got first byte {first:#x}")
        if first & 0x40:
            if not self._takeover:
                self._inflate = zlib.decompressobj(-15)
            body = self._inflate.decompress(body + b"\x00\x00\xff\xff")
        json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])
        self.frames += 1
        made_at = frames.made_at(body)
        if made_at is not None:
            self.ages.append(time.monotonic_ns() - made_at)


def _frame_end(buffer: bytearray, at: int) -> tuple[int, int, int] | None:
    """Return the first byte, begin and end of the payload of the frame at `at`, if it is whole."""
    if len(buffer) < at + 2:
        return None
    size, begin = buffer[at + 1], at + 2
    if size == 126:
        size, begin = int.from_bytes(buffer[at + 2 : at + 4]), at + 4
    elif size == 127:
        size, begin = int.from_bytes(buffer[at + 2 : at + 10]), at + 10
    if len(buffer) < begin + size or begin > len(buffer):
        return None
    return buffer[at], begin, begin + size


class Drain:
    """All connections to one server."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._epoll.register(0, select.EPOLLIN)
        self._sockets: list[socket.socket] = []
        self._read: dict[int, Callable[[memoryview], int]] = {}
        self._counts: dict[int, int] = {}
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._sample = Sample(False)
        self._sample_fd = -1
        self._nap = 0.001
        self._goal: int | None = None
        self._deadline = 0.0
        self._closed = 0
        self._first = self._last = 0.0
        self._mark()

    def run(self) -> None:
        commands = os.fdopen(0, "rb", buffering=0)
        rest = b""
        while True:
            began = time.perf_counter()
            ready = self._epoll.poll(0.05 if self._goal is not None else None)
            self._idle += time.perf_counter() - began
            reading = False
            for fd, _ in ready:
                if fd:
                    reading = True
                    self._take(fd)
                    continue
                data = commands.read(65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
            if self._goal is not None:
                self._check()
            if reading and self._nap:
                began = time.perf_counter()
                time.sleep(self._nap)
                self._idle += time.perf_counter() - began

    def _take(self, fd: int) -> None:
        try:
            size = self._read[fd](self._scratch)
        except BlockingIOError:
            return
        except ConnectionError:
            size = 0
        if not size:
            self._closed += 1
            self._epoll.unregister(fd)
            return
        self._counts[fd] += size
        if fd == self._sample_fd:
            self._last = time.perf_counter()
            if not self._first:
                self._first = self._last
            self._sample.feed(self._scratch[:size])

    def _obey(self, command: dict[str, Any]) -> None:
        match command.pop("do"):
            case "connect":
                self._connect(**command)
                _answer({"connected": len(self._sockets)})
            case "mark":
                self._nap = command.get("nap", 0.001)
                self._mark()
                _answer({})
            case "wait":
                self._goal = command["frames"]
                self._deadline = time.perf_counter() + command["timeout"]
            case "count":
                self._report(True)

    def _mark(self) -> None:
        self._counts = dict.fromkeys(self._counts, 0)
        self._sample.mark()
        self._began = time.perf_counter()
        self._cpu = time.process_time()
        self._idle = 0.0
        self._first = self._last = 0.0

    def _check(self) -> None:
        assert self._goal is not None
        if self._sample.frames >= self._goal:
            size = self._sample.size
            if all(count == size for count in self._counts.values()):
                self._report(True)
                return
        if time.perf_counter() > self._deadline:
            self._report(False)

    def _report(self, complete: bool) -> None:
        wall = time.perf_counter() - self._began
        ages = sorted(self._sample.ages)
        self._goal = None
        _answer(
            {
                "complete": complete,
                "frames": self._sample.frames,
                "bytes": sum(self._counts.values()),
                "sample_bytes": self._sample.size,
                "least": min(self._counts.values(), default=0),
                "most": max(self._counts.values(), default=0),
                "closed": self._closed,
                "wall": wall,
                "span": self._last - self._first,
                "cpu_share": (time.process_time() - self._cpu) / wall,
                "idle_share": self._idle / wall,
                "age_p50": ages[len(ages) // 2] if ages else None,
                "age_p99": ages[len(ages) * 99 // 100] if ages else None,
                "age_max": ages[-1] if ages else None,
            }
        )

    def _connect(
        self,
        port: int,
        path: str,
        count: int,
        offer: str | None = None,
        hello: str | None = None,
        takeover: bool = False,
    ) -> None:
        first = len(self._sockets)
        sampled = first + count // 2
        self._sample = Sample(takeover)
        while len(self._sockets) < first + count:
            have = len(self._sockets)
            batch = [
                _request(port, path.format(i=number), offer)
                for number in range(have, min(have + _BATCH, first + count))
            ]
            for sock in batch:
                early = _upgraded(sock)
                if hello is not None:
                    sock.sendall(_masked_text(hello))
                if len(self._sockets) == sampled:
                    self._sample_fd = sock.fileno()
                    self._sample.feed(memoryview(early))
                self._add(sock, len(early))

    def _add(self, sock: socket.socket, early: int) -> None:
        sock.setblocking(False)
        self._sockets.append(sock)
        self._read[sock.fileno()] = sock.recv_into
        self._counts[sock.fileno()] = early
        self._epoll.register(sock.fileno(), select.EPOLLIN)


def _request(port: int, path: str, offer: str | None) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    extensions = f"Sec-WebSocket-Extensions: {offer}\r\n" if offer else ""
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n{extensions}"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return sock


def _upgraded(sock: socket.socket) -> bytes:
    """Read the answer to the handshake; return what came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise AssertionError(f"closed during the handshake: {data!r}")
        data += more
    head, _, early = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        raise AssertionError(f"refused: {head!r}")
    return early


def _masked_text(text: str) -> bytes:
    data = text.encode()
    return bytes((0x81, 0x80 | len(data), 0, 0, 0, 0)) + data


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        Drain().run()
    except KeyboardInterrupt:
        sys.exit(0)
