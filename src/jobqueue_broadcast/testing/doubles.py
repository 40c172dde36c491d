"""Stand-ins that need no socket: a clock and a loop by hand; connections that lag or break."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.frames import TextWire, Wire

__all__ = [
    "BrokenConnection",
    "HandLoop",
    "ManualClock",
    "RecordingConnection",
    "SlowConnection",
]

_WIRE = TextWire()


class ManualClock:
    """A clock that stands still until it is moved.

    Args:
        now_ms: Unix time in milliseconds to begin at.
    """

    def __init__(self, now_ms: int = 1_642_700_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic = 0.0

    def now_ms(self) -> int:
        """Return Unix time in milliseconds."""
        return self._now_ms + round(self._monotonic * 1000)

    def monotonic(self) -> float:
        """Return seconds since the clock was made."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both times forward.

        Raises:
            InvalidArgument: `seconds` is negative: a steady clock never goes back.
        """
        if seconds < 0:
            raise InvalidArgument(f"seconds: expected 0 or more, got {seconds!r}")
        self._monotonic += seconds


class RecordingConnection:
    """A connection that keeps what it is given.

    Attributes:
        payloads: The frames written, as bytes, in order.
        batches: How many writes there were.
        closed: The code and reason of `close`, once called.
        aborted: Whether `abort` was called.
    """

    def __init__(self, wire: Wire = _WIRE) -> None:
        self.payloads: list[bytes] = []
        self.batches = 0
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self._wire = wire

    @property
    def wire(self) -> Wire:
        """The wire shared by all recording connections, unless another was given."""
        return self._wire

    @property
    def frames(self) -> list[dict[str, Any]]:
        """The frames written, decoded."""
        return [msgspec.json.decode(payload) for payload in self.payloads]

    def take(self) -> list[dict[str, Any]]:
        """Return the frames written since the last call, decoded."""
        frames = self.frames
        self.payloads.clear()
        return frames

    def write(self, batch: Any, /) -> None:
        """Keep a batch."""
        self.batches += 1
        self.payloads.extend(batch)

    def backlog(self) -> int:
        """Return 0: everything written is taken at once."""
        return 0

    def close(self, code: int, reason: str, /) -> None:
        """Keep the code and reason."""
        self.closed = (int(code), reason)

    def abort(self) -> None:
        """Keep that it was called."""
        self.aborted = True


class HandLoop:
    """An event loop whose turns end when the test says so: give `call_soon` to `bind`.

    Attributes:
        scheduled: The calls of the turn that has not ended yet.
    """

    def __init__(self) -> None:
        self.scheduled: deque[Callable[[], Any]] = deque()

    def call_soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Schedule a call."""
        self.scheduled.append(lambda: call(*arguments))

    def run(self) -> int:
        """End the turn; return how many calls were made."""
        calls = 0
        while self.scheduled:
            self.scheduled.popleft()()
            calls += 1
        return calls


class SlowConnection:
    """A connection whose transport has room for so many bytes, and a peer that reads when told.

    Attributes:
        room: Bytes the transport takes before it says that it is full.
        received: What the peer has read, in order.
        buffer: What was written and not yet read.
        closed: The code and reason of `close`, once called.
        aborted: Whether `abort` was called.
        broken: Whether writing raises.
        writes: How many batches were written.
        written_while_paused: Batches written although the core had been told to stop.
    """

    def __init__(self, room: int = 0, wire: Wire = _WIRE) -> None:
        self.room = room
        self.received: list[bytes] = []
        self.buffer: deque[bytes] = deque()
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self.broken = False
        self.writes = 0
        self.written_while_paused = 0
        self.wire = wire
        self._subscriber: Subscriber | None = None
        self._paused = False

    @property
    def frames(self) -> list[dict[str, Any]]:
        """What the peer has read, decoded."""
        return [msgspec.json.decode(payload) for payload in self.received]

    @property
    def types(self) -> list[str]:
        """The types of those frames."""
        return [frame["type"] for frame in self.frames]

    def attach(self, subscriber: Subscriber) -> None:
        """Tell this subscriber from now on; at once when the transport is full already."""
        self._subscriber = subscriber
        self._signal()

    def write(self, batch: Any, /) -> None:
        """Take a batch into the buffer, and say when that is full."""
        if self.broken:
            raise ConnectionResetError("the peer is gone")
        self.writes += 1
        self.written_while_paused += self._paused
        self.buffer.extend(batch)
        self._signal()

    def backlog(self) -> int:
        """Return the bytes that the peer has not read."""
        return sum(map(len, self.buffer))

    def close(self, code: int, reason: str, /) -> None:
        """Keep the code and reason."""
        self.closed = (int(code), reason)

    def abort(self) -> None:
        """Keep that it was called; what was not read is lost."""
        self.aborted = True
        self.buffer.clear()

    def read(self, most: int = 1_000_000) -> list[bytes]:
        """Let the peer read so many frames."""
        read: list[bytes] = []
        while self.buffer and len(read) < most:
            payload = self.buffer.popleft()
            self.received.append(payload)
            read.append(payload)
            # Resuming may write more, which is read in turn.
            self._signal()
        return read

    def _signal(self) -> None:
        if self._subscriber is None:
            return
        if not self._paused and self.backlog() > self.room:
            self._paused = True
            self._subscriber.pause()
        elif self._paused and self.backlog() <= self.room // 2:
            self._paused = False
            self._subscriber.resume()


class BrokenConnection:
    """A connection each of whose methods raises, although none may.

    Attributes:
        calls: The methods called, in order.
    """

    wire: Wire = _WIRE

    def __init__(self) -> None:
        self.calls: list[str] = []

    def _raise(self, name: str) -> None:
        self.calls.append(name)
        raise OSError(f"{name} failed")

    def write(self, _batch: Any, /) -> None:
        """Raise."""
        self._raise("write")

    def backlog(self) -> int:
        """Raise."""
        self._raise("backlog")
        return 0

    def close(self, _code: int, _reason: str, /) -> None:
        """Raise."""
        self._raise("close")

    def abort(self) -> None:
        """Raise."""
        self._raise("abort")
