"""What a slow reader is kept waiting with: the bounded, conflating queue of one connection.

A connection that keeps up has none. Of the frames listed here only the newest of a kind is kept,
and a job's progress goes once its outcome is queued; nothing else is ever dropped (wire protocol,
section 8).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from jobqueue_broadcast.events import (
    Event,
    JobCompleted,
    JobFailed,
    JobProgress,
    MachineStatusChange,
    MachineUpdate,
    SystemStats,
)
from jobqueue_broadcast.frames import Frame

__all__ = ["Outbox", "ends", "replaces"]

_REPLACES: dict[type[Event], Callable[[Any], Hashable]] = {
    JobProgress: lambda event: ("progress", event.job_id),
    SystemStats: lambda event: "system_stats",
    MachineUpdate: lambda event: ("machine_update", event.machine_id),
    MachineStatusChange: lambda event: ("machine_status_change", event.machine_id),
}
_ENDS: dict[type[Event], Callable[[Any], Hashable]] = {
    JobCompleted: lambda event: ("progress", event.job_id),
    JobFailed: lambda event: ("progress", event.job_id),
}


def replaces(frame: Frame) -> Hashable | None:
    """Return the key under which only the newest frame is kept, if this is of such a kind."""
    key = _REPLACES.get(type(frame.event)) if frame.event is not None else None
    return key(frame.event) if key else None


def ends(frame: Frame) -> Hashable | None:
    """Return the key of the frame this one makes pointless, if it does."""
    key = _ENDS.get(type(frame.event)) if frame.event is not None else None
    return key(frame.event) if key else None


class Outbox:
    """Frames waiting for one connection, in order.

    Args:
        limit: Bytes of payload it may hold.

    Attributes:
        size: Bytes of payload it holds.
        conflated: Frames dropped so far because a newer one or an outcome made them pointless.
    """

    __slots__ = ("_by_key", "_frames", "_next", "conflated", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.conflated = 0
        self._next = 0
        self._frames: dict[int, Frame] = {}
        self._by_key: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Frame) -> bool:
        """Queue a frame; return whether there was room.

        When there was not, the frame is not queued and the connection must be closed: it would
        otherwise miss it.
        """
        replaced = replaces(frame)
        for key in (replaced, ends(frame)):
            if key is not None:
                self._drop(key)
        if self.size + len(frame.payload) > self.limit:
            return False
        ticket = self._next
        self._next += 1
        self._frames[ticket] = frame
        self.size += len(frame.payload)
        if replaced is not None:
            self._by_key[replaced] = ticket
        return True

    def take(self, size: int) -> list[Frame]:
        """Remove and return frames from the front, at least one and up to about `size` bytes."""
        taken: list[Frame] = []
        for ticket in list(self._frames):
            if size <= 0:
                break
            frame = self._remove(ticket)
            size -= len(frame.payload)
            taken.append(frame)
            key = replaces(frame)
            if key is not None:
                del self._by_key[key]
        return taken

    def _drop(self, key: Hashable) -> None:
        ticket = self._by_key.pop(key, None)
        if ticket is not None:
            self._remove(ticket)
            self.conflated += 1

    def _remove(self, ticket: int) -> Frame:
        frame = self._frames.pop(ticket)
        self.size -= len(frame.payload)
        return frame
