"""How frames reach connections: once per turn of the event loop, in order, and slow readers aside.

Connections that are to receive the same frames form a `Group`, which has one list of pending
frames. A flush packs and joins them once and writes the same batch to every member. Before
something is written to one member alone, or the membership changes, the group is flushed: that is
what keeps replies, states and live events of one connection in order.

A member whose transport is full is *behind*: its frames wait in an outbox, or, while it catches up
with the past, are left in the history that it reads from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from typing import Any

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.clock import Clock
from jobqueue_broadcast.errors import CloseCode
from jobqueue_broadcast.frames import Connection, Frame, Wire
from jobqueue_broadcast.handshake import Kind
from jobqueue_broadcast.outbox import Outbox

__all__ = ["Delivery", "Group", "Subscriber"]

logger = logging.getLogger("jobqueue_broadcast")

# A transport says that it is full only after a write. Batches above this are written in pieces, so
# that one flush cannot put more than a piece too much into the buffer of a slow peer.
_PIECE = 64 * 1024


class Group:
    """Connections that receive the same frames on the same wire.

    Attributes:
        wire: What packs the frames.
        positions: Whether event frames carry positions.
        members: Who receives them.
        pending: Frames of this turn of the event loop, not yet written.
    """

    __slots__ = ("members", "pending", "positions", "wire")

    def __init__(self, wire: Wire, positions: bool, members: Collection[Subscriber] = ()) -> None:
        self.wire = wire
        self.positions = positions
        self.members = members
        self.pending: list[Frame] = []


class Subscriber:
    """One connected monitor or client, as `EventBroadcaster.add_monitor` and `add_client` return it.

    An adapter calls `pause` and `resume` as its transport fills and drains.

    Attributes:
        kind: `"monitor"` or `"client"`.
        id: Its id.
        principal: Who it acts for.
        connection: What the adapter gave.
        connected: Whether it is still registered.
    """

    __slots__ = (
        "_backlog",
        "_delivery",
        "_on_caught_up",
        "_outbox",
        "_paused",
        "_since",
        "_source",
        "behind",
        "connected",
        "connection",
        "group",
        "id",
        "kind",
        "principal",
    )

    def __init__(
        self,
        delivery: Delivery,
        kind: Kind,
        subscriber_id: str,
        principal: Principal,
        connection: Connection,
        group: Group,
    ) -> None:
        self.kind: Kind = kind
        self.id = subscriber_id
        self.principal = principal
        self.connection = connection
        self.group = group
        self.connected = True
        self.behind = False
        self._delivery = delivery
        self._paused = False
        self._outbox: Outbox | None = None
        self._source: Iterator[list[Frame]] | None = None
        self._on_caught_up: list[Callable[[], None]] | None = None
        self._since = 0.0
        self._backlog = 0

    def __repr__(self) -> str:
        return f"Subscriber({self.kind} {self.id!r})"

    @property
    def caught_up(self) -> bool:
        """Whether it receives live events, and not the past it resumed over."""
        return self._source is None

    @property
    def waiting(self) -> int:
        """Bytes that wait in its outbox."""
        return self._outbox.size if self._outbox else 0

    def pause(self) -> None:
        """Say that the transport is full: nothing is written until `resume`."""
        self._paused = True
        self._delivery.fall_behind(self)

    def resume(self) -> None:
        """Say that the transport has room again: what waited is written."""
        self._paused = False
        if self.behind:
            self._delivery.drain(self)

    def when_caught_up(self, call: Callable[[], None]) -> None:
        """Call `call` once this connection receives live events; at once if it does."""
        if self._source is None:
            call()
        else:
            self._on_caught_up = [*(self._on_caught_up or ()), call]


class Delivery:
    """Writes what is pending, keeps slow readers apart, and counts both.

    Args:
        clock: For the stall limit.
        outbox_limit: Bytes of payload that may wait for one connection; past it the connection is
            closed with 4408.
        stall_limit: Seconds after which a connection to which nothing could be written is aborted.
        on_lost: Called with a subscriber that was closed or aborted from here, to unregister it.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        outbox_limit: int,
        stall_limit: float,
        on_lost: Callable[[Subscriber], None],
    ) -> None:
        self._clock = clock
        self.outbox_limit = outbox_limit
        self.stall_limit = stall_limit
        self._on_lost = on_lost
        self._dirty: list[Group] = []
        self._call_soon: Callable[[Callable[[], None]], Any] | None = None
        self._scheduled = False
        self._behind: dict[Subscriber, None] = {}
        self.frames = 0
        self.writes = 0
        self.write_errors = 0
        self.conflated = 0
        self.too_slow = 0
        self.stalled = 0

    def schedule_with(self, call_soon: Callable[[Callable[[], None]], Any] | None) -> None:
        """Flush once per turn of an event loop; without one, `settle` flushes at once."""
        self._call_soon = call_soon

    @property
    def behind_count(self) -> int:
        """How many connections are behind."""
        return len(self._behind)

    @property
    def waiting(self) -> int:
        """Bytes that wait in all outboxes."""
        return sum(subscriber.waiting for subscriber in self._behind)

    def send(self, group: Group, frame: Frame) -> None:
        """Send a frame to all of a group, with the rest of this turn."""
        if not group.pending:
            self._dirty.append(group)
            if not self._scheduled and self._call_soon is not None:
                self._scheduled = True
                self._call_soon(self.flush)
        group.pending.append(frame)

    def send_to(self, subscriber: Subscriber, frames: list[Frame]) -> None:
        """Send frames to one connection alone, after what is pending for it."""
        group = subscriber.group
        if len(group.members) == 1 and subscriber.caught_up:
            for frame in frames:
                self.send(group, frame)
        else:
            self.flush_group(group)
            self._write(subscriber, frames, replies=True)

    def settle(self) -> None:
        """Flush now, unless an event loop will."""
        if self._call_soon is None:
            self.flush()

    def flush(self) -> None:
        """Write everything that is pending."""
        self._scheduled = False
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for group in dirty:
                self.flush_group(group)

    def flush_group(self, group: Group) -> None:
        """Write what is pending for a group: packed and joined once, written once per member."""
        frames = group.pending
        if not frames:
            return
        group.pending = []
        wire = group.wire
        if len(frames) > 1 and sum(len(frame.payload) for frame in frames) > _PIECE:
            for subscriber in list(group.members):
                self._write(subscriber, frames)
            return
        batch = wire.join([frame.packed(wire) for frame in frames])
        written = 0
        apart: list[Subscriber] | None = None
        for subscriber in group.members:
            if subscriber.behind:
                apart = apart or []
                apart.append(subscriber)
                continue
            try:
                subscriber.connection.write(batch)
            except Exception:
                # A connection must not raise; one that does is dropped, the others are served.
                apart = apart or []
                apart.append(subscriber)
                continue
            written += 1
        self.writes += written
        self.frames += written * len(frames)
        for subscriber in apart or ():
            if subscriber.behind:
                self._queue(subscriber, frames)
            else:
                self._drop_broken(subscriber)

    def catch_up(self, subscriber: Subscriber, source: Iterator[list[Frame]]) -> None:
        """Let a connection read from the past, at its own pace, until it has reached the present."""
        subscriber._source = source
        self.fall_behind(subscriber)
        self.drain(subscriber)

    def fall_behind(self, subscriber: Subscriber) -> None:
        """Begin to keep a connection's frames aside."""
        if subscriber.connected and not subscriber.behind:
            subscriber.behind = True
            self._behind[subscriber] = None
            subscriber._since = self._clock.monotonic()
            subscriber._backlog = -1

    def drain(self, subscriber: Subscriber) -> None:
        """Write what waits for a connection until its transport is full or nothing waits."""
        subscriber._since = self._clock.monotonic()
        while subscriber.connected and not subscriber._paused:
            frames = self._next_waiting(subscriber)
            if frames is None:
                subscriber.behind = False
                subscriber._outbox = None
                self._behind.pop(subscriber, None)
                return
            self._write_batch(subscriber, frames)

    def check_stalls(self) -> None:
        """Abort the connections to which nothing could be written for the stall limit.

        A closing handshake with such a peer would wait behind the same full buffer.
        """
        now = self._clock.monotonic()
        for subscriber in list(self._behind):
            backlog = subscriber.connection.backlog()
            if backlog != subscriber._backlog:
                subscriber._backlog = backlog
                subscriber._since = now
            elif now - subscriber._since >= self.stall_limit:
                self.stalled += 1
                logger.warning("%r: aborted, nothing could be written to it", subscriber)
                self._on_lost(subscriber)
                subscriber.connection.abort()

    def close(self, subscriber: Subscriber, code: int, reason: str) -> None:
        """Close a connection after what is pending for it, and unregister it."""
        if not subscriber.connected:
            return
        self.flush_group(subscriber.group)
        self._on_lost(subscriber)
        subscriber.connection.close(code, reason)

    def forget(self, subscriber: Subscriber) -> None:
        """Drop everything that waits for a connection that is gone."""
        subscriber.connected = False
        subscriber.behind = False
        subscriber._outbox = None
        subscriber._source = None
        subscriber._on_caught_up = None
        self._behind.pop(subscriber, None)

    def _next_waiting(self, subscriber: Subscriber) -> list[Frame] | None:
        """Return the next frames for a connection that is behind; `None`: there are no more."""
        while subscriber._source is not None:
            frames = next(subscriber._source, None)
            if frames:
                return frames
            if frames is None:
                # What is pending was read from the history already: discarded for this member.
                self.flush_group(subscriber.group)
                subscriber._source = None
                self._tell_caught_up(subscriber)
        if subscriber._outbox:
            return subscriber._outbox.take(_PIECE)
        return None

    def _tell_caught_up(self, subscriber: Subscriber) -> None:
        calls, subscriber._on_caught_up = subscriber._on_caught_up, None
        for call in calls or ():
            call()

    def _write(self, subscriber: Subscriber, frames: list[Frame], replies: bool = False) -> None:
        """Write frames to one connection in pieces, and queue what its transport has no room for."""
        at = 0
        while at < len(frames) and not subscriber.behind and subscriber.connected:
            end, size = at, 0
            while end < len(frames) and size < _PIECE:
                size += len(frames[end].payload)
                end += 1
            self._write_batch(subscriber, frames[at:end])
            at = end
        if at < len(frames):
            self._queue(subscriber, frames[at:], replies)

    def _write_batch(self, subscriber: Subscriber, frames: list[Frame]) -> None:
        wire = subscriber.group.wire
        try:
            subscriber.connection.write(wire.join([frame.packed(wire) for frame in frames]))
        except Exception:
            self._drop_broken(subscriber)
            return
        self.writes += 1
        self.frames += len(frames)

    def _queue(self, subscriber: Subscriber, frames: list[Frame], replies: bool = False) -> None:
        """Keep frames for a connection that is behind; close it when there is no room."""
        if not subscriber.connected or (subscriber._source is not None and not replies):
            return
        if subscriber._outbox is None:
            subscriber._outbox = Outbox(self.outbox_limit)
        outbox = subscriber._outbox
        before = outbox.conflated
        roomy = all(outbox.put(frame) for frame in frames)
        self.conflated += outbox.conflated - before
        if not roomy:
            self.too_slow += 1
            logger.warning("%r: closed, its outbox of %d bytes is full", subscriber, outbox.limit)
            self._on_lost(subscriber)
            subscriber.connection.close(CloseCode.TOO_SLOW, "too slow: the outbox is full")

    def _drop_broken(self, subscriber: Subscriber) -> None:
        self.write_errors += 1
        logger.warning("%r: dropped, writing to it failed", subscriber, exc_info=True)
        self._on_lost(subscriber)
        try:
            subscriber.connection.abort()
        except Exception:
            logger.warning("%r: abort failed", subscriber, exc_info=True)
