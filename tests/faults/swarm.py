"""Many raw WebSocket peers in one thread: they read and count, stop reading, or vanish.

Raw sockets, because what is tested is what arrives on the wire, and because a peer that does not
read must really not read.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Any

OPEN_TIMEOUT = 20.0


class RawPeer:
    """One connection: its frames, in order, and how it ended."""

    def __init__(self, port: int, target: str, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(OPEN_TIMEOUT)
        self.socket.connect(("127.0.0.1", port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            (
                f"GET {target} HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n"
            ).encode()
        )
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(4096)
            assert data, "closed during the handshake"
            self._buffer += data
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 101"), head
        self.frames: list[bytes] = []
        self.close_code: int | None = None
        self.ended = threading.Event()
        self._parse()

    def feed(self, data: bytes) -> None:
        """Take what arrived."""
        if not data:
            self.ended.set()
            return
        self._buffer += data
        self._parse()

    def decoded(self) -> list[dict[str, Any]]:
        """Return the text frames so far."""
        return [json.loads(frame) for frame in self.frames]

    def send(self, frame: dict[str, Any]) -> None:
        """Send a masked text frame."""
        payload = json.dumps(frame).encode()
        self.socket.sendall(_client_frame(0x81, payload))

    def send_close(self, code: int) -> None:
        """Begin the closing handshake."""
        self.socket.sendall(_client_frame(0x88, struct.pack("!H", code)))

    def _parse(self) -> None:
        while (parsed := _parse_frame(self._buffer)) is not None:
            opcode, payload, size = parsed
            self._buffer = self._buffer[size:]
            if opcode == 0x1:
                self.frames.append(payload)
            elif opcode == 0x8:
                self.close_code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                try:
                    self.socket.sendall(_client_frame(0x88, payload[:2]))
                except OSError:
                    pass
            elif opcode == 0x9:
                self.socket.sendall(_client_frame(0x8A, payload))


class Swarm:
    """Peers that are read by one thread, except those that are stalled."""

    def __init__(self) -> None:
        self.peers: list[RawPeer] = []
        self._selector = selectors.DefaultSelector()
        self._stop = False
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def connect(self, port: int, targets: Iterable[str]) -> list[RawPeer]:
        """Connect peers that are read at once."""
        added = [RawPeer(port, target) for target in targets]
        self.peers += added
        for peer in added:
            self.read(peer)
        return added

    def read(self, peer: RawPeer) -> None:
        """Read a peer from now on."""
        peer.socket.setblocking(False)
        with self._lock:
            self._selector.register(peer.socket, selectors.EVENT_READ, peer)

    def stall(self, peer: RawPeer) -> None:
        """Read a peer no more."""
        with self._lock:
            self._selector.unregister(peer.socket)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Wait until a condition holds; it is tried whenever something arrived."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout), "the condition never held"

    def close(self) -> None:
        """Stop reading and close every socket."""
        self._stop = True
        self._thread.join()
        self._selector.close()
        for peer in self.peers:
            peer.socket.close()

    def _run(self) -> None:
        while not self._stop:
            with self._lock:
                ready = self._selector.select(0.02)
                for key, _ in ready:
                    self._read(key.data)
            with self._changed:
                self._changed.notify_all()

    def _read(self, peer: RawPeer) -> None:
        try:
            data = peer.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(peer.socket)
        peer.feed(data)


def _client_frame(first: int, payload: bytes) -> bytes:
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    length = len(payload)
    head = (
        bytes((first, 0x80 | length)) if length < 126 else struct.pack("!BBH", first, 254, length)
    )
    return head + mask + masked


def _parse_frame(data: bytes) -> tuple[int, bytes, int] | None:
    if len(data) < 2:
        return None
    length, at = data[1] & 0x7F, 2
    if length == 126:
        if len(data) < 4:
            return None
        length, at = int.from_bytes(data[2:4]), 4
    elif length == 127:
        if len(data) < 10:
            return None
        length, at = int.from_bytes(data[2:10]), 10
    if len(data) < at + length:
        return None
    return data[0] & 0x0F, data[at : at + length], at + length
