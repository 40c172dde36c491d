"""Which events are retained, by position: for peers that resume, and for `resync_request`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec import Struct

from jobqueue_broadcast.events import Event
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.predicates import JobFacts

__all__ = ["History", "Page", "Record", "Trimmed"]

_CHUNK = 256


class Trimmed(Exception):
    """Events after the asked position are no longer retained."""


class Record(Struct, frozen=True, gc=False, eq=False):
    """One retained event. Not part of any cycle, so the garbage collector need not look at it.

    Attributes:
        sequence: Where it stands in the order of all events.
        event: What happened.
        payload: Its original-format frame.
        facts: What was known of its job, for filters.
        told: Whether clients subscribed to its job were told.
    """

    sequence: int
    event: Event
    payload: bytes
    facts: JobFacts | None
    told: bool


class Page(NamedTuple):
    """An answer to `resync_request`: records by time, and whether there are later ones."""

    records: list[Record]
    has_more: bool


class History:
    """The newest events, in order, bounded by count and bytes.

    Args:
        epoch: Names this unbroken sequence of events.
        limit: How many events to retain; 0 retains none.
        byte_limit: How many bytes of original-format frames to retain.
        head: The sequence of the last event before this history begins.

    What is trimmed cannot be resumed over: peers that ask for it are told `resync_required`.
    """

    def __init__(self, epoch: str, limit: int, byte_limit: int, head: int = 0) -> None:
        self.epoch = epoch
        self.limit = limit
        self.byte_limit = byte_limit
        self.size = 0
        self.head = head
        self.floor = head
        """Every event after this sequence is retained."""
        self.trimmed = 0
        # Removing from the front of a list is slow, and a deque cannot be searched by position:
        # `_start` moves instead, and the dead front is cut off when it is half of the list.
        self._records: list[Record] = []
        self._start = 0

    def __len__(self) -> int:
        return len(self._records) - self._start

    @property
    def position(self) -> Position:
        """The position of the newest event."""
        return Position(self.epoch, self.head)

    def append(self, record: Record) -> None:
        """Retain an event; the oldest ones go when a bound is passed."""
        self._records.append(record)
        self.size += len(record.payload)
        self.head = record.sequence
        # `len(self)` would be a call of its own for every event.
        while len(self._records) - self._start > self.limit or self.size > self.byte_limit:
            self._trim_one()

    def begin(self, epoch: str, head: int) -> None:
        """Forget everything and begin another sequence."""
        self.trimmed += len(self)
        self._records.clear()
        self._start = 0
        self.size = 0
        self.epoch = epoch
        self.head = self.floor = head

    def covers(self, sequence: int) -> bool:
        """Tell whether every event after `sequence` is retained."""
        return self.floor <= sequence <= self.head

    def after(self, position: Position) -> Iterator[list[Record]]:
        """Yield the events after a position, in order and in chunks, up to the newest.

        Lazy: events that arrive while a slow reader takes its time are included.

        Raises:
            Trimmed: From the iterator, when events not yet yielded were trimmed or the sequence
                began anew.
        """
        sequence = position.sequence
        while True:
            if position.epoch != self.epoch or not self.covers(sequence):
                raise Trimmed
            at = bisect_right(self._records, sequence, lo=self._start, key=_sequence)
            chunk = self._records[at : at + _CHUNK]
            if not chunk:
                return
            sequence = chunk[-1].sequence
            yield chunk

    def page(self, since: int, most: int, wanted: Callable[[Record], bool]) -> Page:
        """Return the wanted events of `since` (Unix ms) and later, oldest first.

        Events of hosts need not arrive in the order of their timestamps, so they are sorted here.
        A page never splits a millisecond; and where later events exist it always gets past
        `since`, however many there are in that millisecond, so that asking again with the last
        timestamp makes headway.
        """
        records = sorted(
            (
                record
                for record in self._records[self._start :]
                if record.event.timestamp >= since and wanted(record)
            ),
            key=_timestamp,
        )
        end = bisect_right(records, since, key=_timestamp)
        end = max(most, end + 1)
        if end < len(records):
            end = bisect_right(records, records[end - 1].event.timestamp, key=_timestamp)
        return Page(records[:end], end < len(records))

    def oldest_timestamp(self) -> int | None:
        """Return the lowest timestamp that is retained, if any event is."""
        return min((_timestamp(record) for record in self._records[self._start :]), default=None)

    def _trim_one(self) -> None:
        record = self._records[self._start]
        self.floor = record.sequence
        self.size -= len(record.payload)
        self.trimmed += 1
        self._start += 1
        if self._start * 2 > len(self._records):
            del self._records[: self._start]
            self._start = 0


def _sequence(record: Record) -> int:
    return record.sequence


def _timestamp(record: Record) -> int:
    return record.event.timestamp
