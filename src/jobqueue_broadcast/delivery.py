"""How frames reach connections: once per turn of the event loop, in order, and slow readers aside.

Connections that are to receive the same frames form a `Group`, which has one list of pending
frames. A flush packs and joins them once and writes the same batch to every member. Before
something is written to one member alone, or the membership changes, the group is flushed: that is
what keeps replies, states and live events of one connection in order.

A member whose transport is full is *behind*: its frames wait in an outbox, or, while it catches up
with the past, are left in the history that it reads from.
"""

# A `Subscriber` is as much of the books kept here as the outside needs to see.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import logging
import sys
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

# What waits for a connection to catch up is mostly what its peer asked for in the meantime.
_CALLS = 1024


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
    """One connected monitor or client, as `add_monitor` and `add_client` return it.

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
        "_calls",
        "_delivery",
        "_outbox",
        "_paused",
        "_scheduled",
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
        self._scheduled = False
        self._outbox: Outbox | None = None
        self._source: Iterator[list[Frame]] | None = None
        # Made for those that catch up, which most never do.
        self._calls: list[Callable[[], None]] | None = None
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
            self._delivery.settle()

    def when_caught_up(self, call: Callable[[], None]) -> None:
        """Call `call` once this connection receives live events; at once if it does.

        Calls keep their order. None is made once the connection is lost, and a connection that
        gathers more than 1,024 is closed with 4408.
        """
        if self._source is None:
            call()
            return
        if self._calls is None:
            self._calls = []
        self._calls.append(call)
        if len(self._calls) > _CALLS:
            self._delivery.close_too_slow(self, "too many commands wait")


class Delivery:
    """Writes what is pending, keeps slow readers apart, and counts both.

    Args:
        clock: For the stall limit.
        outbox_limit: Bytes of payload that may wait for one connection; past it the connection is
            closed with 4408.
        stall_limit: Seconds after which a connection to which nothing could be written is aborted.
        on_lost: Called with a subscriber that was closed or aborted from here, to unregister it;
            nothing is written to it any more.
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
        self._flushing = False
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
        # Another loop than before knows nothing of a flush that was scheduled there.
        self._scheduled = bool(self._dirty) and call_soon is not None
        if call_soon is not None and self._scheduled:
            call_soon(self.flush)
        for subscriber in list(self._behind):
            subscriber._scheduled = False
            self.drain(subscriber)

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
        if not subscriber.connected:
            return
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
        if self._flushing:
            # Called by a connection that is being written to. What it broadcast comes after what
            # the others have yet to be written: the loop below, further up the stack, goes on.
            return
        self._flushing = True
        try:
            while self._dirty:
                dirty, self._dirty = self._dirty, []
                for group in dirty:
                    self.flush_group(group)
        finally:
            self._flushing = False

    def flush_group(self, group: Group) -> None:
        """Write what is pending for a group: packed and joined once, written once per member."""
        frames = group.pending
        if not frames:
            return
        group.pending = []
        if len(frames) > 1 and sum(len(frame.payload) for frame in frames) > _PIECE:
            for piece in _pieces(frames):
                self._write_to_all(group, piece)
        else:
            self._write_to_all(group, frames)

    def catch_up(self, subscriber: Subscriber, source: Iterator[list[Frame]]) -> None:
        """Let a connection read from the past, at its own pace, until it has reached the present.

        With an event loop it begins when this turn is over: the adapter has the subscriber by then,
        and can pause it. Then one piece a turn is written: to read ten thousand events takes 30 ms,
        for which nobody else should wait.
        """
        subscriber._source = _in_pieces(source)
        self.fall_behind(subscriber)
        self._drain_soon(subscriber)

    def fall_behind(self, subscriber: Subscriber) -> None:
        """Begin to keep a connection's frames aside."""
        if subscriber.connected and not subscriber.behind:
            subscriber.behind = True
            self._behind[subscriber] = None
            subscriber._since = self._clock.monotonic()
            subscriber._backlog = sys.maxsize

    def drain(self, subscriber: Subscriber) -> None:
        """Write what waits for a connection until its transport is full or nothing waits."""
        subscriber._since = self._clock.monotonic()
        while subscriber.connected and not subscriber._paused:
            frames = self._next_waiting(subscriber)
            if frames is not None:
                self._write_batch(subscriber, frames)
                if not subscriber.caught_up and self._call_soon is not None:
                    self._drain_soon(subscriber)
                    return
            elif subscriber.connected:
                subscriber.behind = False
                subscriber._outbox = None
                self._behind.pop(subscriber, None)
                return

    def _drain_soon(self, subscriber: Subscriber) -> None:
        if self._call_soon is None:
            self.drain(subscriber)
        elif not subscriber._scheduled:
            subscriber._scheduled = True
            self._call_soon(lambda: self._go_on_draining(subscriber))

    def _go_on_draining(self, subscriber: Subscriber) -> None:
        subscriber._scheduled = False
        if subscriber.behind:
            self.drain(subscriber)

    def check_stalls(self) -> None:
        """Abort the connections to which nothing could be written for the stall limit.

        A closing handshake with such a peer would wait behind the same full buffer.
        """
        now = self._clock.monotonic()
        for subscriber in list(self._behind):
            if not subscriber.connected:
                continue
            try:
                backlog = subscriber.connection.backlog()
            except Exception as error:  # noqa: BLE001 - it is logged where it is dealt with
                self._drop_broken(subscriber, error)
                continue
            # Only what shrinks was taken by the peer; pongs and pings make a buffer grow.
            shrunk = backlog < subscriber._backlog
            subscriber._backlog = backlog
            if shrunk:
                subscriber._since = now
            elif now - subscriber._since >= self.stall_limit:
                self.stalled += 1
                logger.warning("%r: aborted, nothing could be written to it", subscriber)
                self.abort(subscriber)

    def close(self, subscriber: Subscriber, code: int, reason: str) -> None:
        """Close a connection after what is pending for it, and unregister it.

        What waits in its outbox is handed to its transport first, full or not: it may hold the
        outcome of a job.
        """
        if not subscriber.connected:
            return
        self.flush_group(subscriber.group)
        outbox = subscriber._outbox
        if outbox and subscriber.caught_up:
            self._write_batch(subscriber, outbox.take(outbox.size))
        if subscriber.connected:
            self._close(subscriber, code, reason)

    def close_replaced(self, subscriber: Subscriber) -> None:
        """Close a connection whose id a newer one has, with 4409; the newer has what waits."""
        if not subscriber.connected:
            return
        self.flush_group(subscriber.group)
        if subscriber.connected:
            self._close(subscriber, CloseCode.REPLACED, "replaced by a newer connection")

    def close_too_slow(self, subscriber: Subscriber, why: str) -> None:
        """Close a connection for which too much waits, with 4408."""
        self.too_slow += 1
        logger.warning("%r: closed as too slow, %s", subscriber, why)
        self._close(subscriber, CloseCode.TOO_SLOW, f"too slow: {why}")

    def abort(self, subscriber: Subscriber) -> None:
        """Drop a connection at once, and unregister it."""
        self._lose(subscriber)
        try:
            subscriber.connection.abort()
        except Exception:
            logger.warning("%r: abort failed", subscriber, exc_info=True)

    def forget(self, subscriber: Subscriber) -> None:
        """Drop everything that waits for a connection that is gone."""
        subscriber.connected = False
        # Whoever is about to write to it finds it behind, and then that nothing is kept for it.
        subscriber.behind = True
        subscriber._outbox = None
        subscriber._source = None
        subscriber._calls = None
        self._behind.pop(subscriber, None)

    def _next_waiting(self, subscriber: Subscriber) -> list[Frame] | None:
        """Return the next frames for a connection that is behind; `None`: there are no more."""
        if subscriber._source is not None:
            frames = next(subscriber._source, None)
            if frames is not None:
                return frames
            # What is pending was read from the history already: discarded for this member.
            self.flush_group(subscriber.group)
            subscriber._source = None
            self._tell_caught_up(subscriber)
        if subscriber._outbox:
            return subscriber._outbox.take(_PIECE)
        return None

    def _tell_caught_up(self, subscriber: Subscriber) -> None:
        calls, subscriber._calls = subscriber._calls, None
        for call in calls or ():
            if subscriber.connected:
                call()

    def _write_to_all(self, group: Group, frames: list[Frame]) -> None:
        batch = _batch(group.wire, frames)
        written = 0
        apart: list[Subscriber] | None = None
        broken: list[tuple[Subscriber, Exception]] | None = None
        # A copy: a connection that finds its peer gone may leave the group right away.
        for subscriber in tuple(group.members):
            if subscriber.behind:
                apart = apart or []
                apart.append(subscriber)
                continue
            try:
                subscriber.connection.write(batch)
            except Exception as error:  # noqa: BLE001 - it is logged where it is dealt with
                # A connection must not raise; one that does is dropped, the others are served.
                broken = broken or []
                broken.append((subscriber, error))
                continue
            written += 1
        self.writes += written
        self.frames += written * len(frames)
        for subscriber in apart or ():
            self._write(subscriber, frames)
        for subscriber, why in broken or ():
            self._drop_broken(subscriber, why)

    def _write(self, subscriber: Subscriber, frames: list[Frame], replies: bool = False) -> None:
        """Write frames to one connection in pieces; queue what its transport has no room for."""
        for piece in _pieces(frames):
            if subscriber.behind:
                self._queue(subscriber, piece, replies)
            else:
                self._write_batch(subscriber, piece)

    def _write_batch(self, subscriber: Subscriber, frames: list[Frame]) -> None:
        try:
            subscriber.connection.write(_batch(subscriber.group.wire, frames))
        except Exception as error:  # noqa: BLE001 - it is logged where it is dealt with
            self._drop_broken(subscriber, error)
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
            self.close_too_slow(subscriber, f"its outbox of {outbox.limit} bytes is full")

    def _drop_broken(self, subscriber: Subscriber, error: Exception) -> None:
        self.write_errors += 1
        logger.warning("%r: dropped, writing to it failed", subscriber, exc_info=error)
        self.abort(subscriber)

    def _close(self, subscriber: Subscriber, code: int, reason: str) -> None:
        self._lose(subscriber)
        try:
            subscriber.connection.close(code, reason)
        except Exception:
            logger.warning("%r: close failed", subscriber, exc_info=True)

    def _lose(self, subscriber: Subscriber) -> None:
        # Forgotten first: to unregister it flushes its group, of which it is a member until then.
        self.forget(subscriber)
        self._on_lost(subscriber)


def _batch(wire: Wire, frames: list[Frame]) -> Any:
    if len(frames) == 1:  # the usual case where each client has jobs of its own
        return wire.join((frames[0].packed(wire),))
    return wire.join([frame.packed(wire) for frame in frames])


def _pieces(frames: list[Frame]) -> Iterator[list[Frame]]:
    """Cut frames into batches, each but the last at least as large as a piece."""
    at = 0
    while at < len(frames):
        end, size = at, 0
        while end < len(frames) and size < _PIECE:
            size += len(frames[end].payload)
            end += 1
        yield frames[at:end]
        at = end


def _in_pieces(source: Iterator[list[Frame]]) -> Iterator[list[Frame]]:
    for frames in source:
        yield from _pieces(frames)
