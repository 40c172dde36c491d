"""What a host tests with: a clock that is moved by hand, and a connection that records."""

from __future__ import annotations

from typing import Any

import msgspec

from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.frames import TextWire, Wire

__all__ = ["ManualClock", "RecordingConnection"]

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
