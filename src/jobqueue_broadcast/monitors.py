"""The connected monitors: what each holds, what it is greeted with, and which events it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import msgspec

from jobqueue_broadcast._routing import MonitorGroup, MonitorIndex
from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.catch_up import Reason, past
from jobqueue_broadcast.clock import Clock
from jobqueue_broadcast.commands import (
    Connected,
    FullStateSnapshot,
    HeartbeatAck,
    ResyncRequired,
    ResyncResponse,
)
from jobqueue_broadcast.delivery import Delivery, Subscriber
from jobqueue_broadcast.errors import IdTaken
from jobqueue_broadcast.frames import Connection, Frame, Wire, reply_frame
from jobqueue_broadcast.history import History, Record
from jobqueue_broadcast.positions import Position, with_position
from jobqueue_broadcast.predicates import Subscription, should_monitor_receive_event
from jobqueue_broadcast.topics import Topic

__all__ = ["Monitors"]


class Monitors:
    """All connected monitors.

    Args:
        delivery: Writes their frames.
        history: What they may resume over.
        clock: For the timestamps of replies.
        snapshot: Returns `data` of a `full_state_snapshot`.
    """

    def __init__(
        self,
        delivery: Delivery,
        history: History,
        clock: Clock,
        snapshot: Callable[[], dict[str, Any]],
    ) -> None:
        self._delivery = delivery
        self._history = history
        self._clock = clock
        self._snapshot = snapshot
        self._index = MonitorIndex()
        self._connected: dict[str, Subscriber] = {}
        self.resyncs = 0

    def __len__(self) -> int:
        return len(self._connected)

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(list(self._connected.values()))

    @property
    def group_count(self) -> int:
        """How many different subscriptions there are."""
        return self._index.group_count

    def get(self, monitor_id: str) -> Subscriber | None:
        """Return a connected monitor."""
        return self._connected.get(monitor_id)

    def check_id(self, monitor_id: str, principal: Principal) -> None:
        """Raise `IdTaken` when the id belongs to another principal."""
        present = self._connected.get(monitor_id)
        if present is not None and present.principal.id != principal.id:
            raise IdTaken(f"monitor id {monitor_id!r} belongs to another principal")

    def add(
        self,
        monitor_id: str,
        connection: Connection,
        subscription: Subscription,
        principal: Principal,
        resume: Position | Literal["new"] | None,
    ) -> Subscriber:
        """Register a monitor, greet it, and bring it up to now if it resumes."""
        self.check_id(monitor_id, principal)
        if (present := self._connected.get(monitor_id)) is not None:
            self._delivery.close_replaced(present)
        group = self._flushed_group(connection.wire, resume is not None, subscription)
        subscriber = Subscriber(self._delivery, "monitor", monitor_id, principal, connection, group)
        self._connected[monitor_id] = subscriber
        group.members[subscriber] = None
        greeting = Connected(timestamp=self._clock.now_ms())
        if isinstance(resume, Position):
            self._delivery.catch_up(
                subscriber,
                past(
                    self._history,
                    resume,
                    greeting=[reply_frame(greeting, resume)],
                    frame_of=lambda record: self._retained(subscriber, record),
                    restart=self._restart,
                    finish=list,
                ),
            )
        else:
            at = self._history.position if resume == "new" else None
            self._delivery.send_to(subscriber, [reply_frame(greeting, at)])
        return subscriber

    def remove(self, subscriber: Subscriber) -> None:
        """Unregister a monitor, if it is registered."""
        if self._connected.get(subscriber.id) is subscriber:
            del self._connected[subscriber.id]
        self._leave(subscriber)

    def update(self, subscriber: Subscriber, subscription: Subscription) -> None:
        """Replace what a monitor holds, from the next event on.

        A monitor that catches up has first what it missed, by the subscription it had.
        """

        def replace() -> None:
            old = subscriber.group
            self._leave(subscriber)
            group = self._flushed_group(old.wire, old.positions, subscription)
            # To leave is to be written what is pending, which may have been its end.
            if subscriber.connected:
                subscriber.group = group
                group.members[subscriber] = None
            else:
                self._index.discard(group)

        subscriber.when_caught_up(replace)

    def subscription(self, subscriber: Subscriber) -> Subscription:
        """Return what a monitor holds."""
        return _group_of(subscriber).subscription

    def deliver(self, record: Record) -> None:
        """Send an event to the monitors it goes to."""
        if not self._connected:
            return
        event = record.event
        plain: Frame | None = None
        positioned: Frame | None = None
        for group in self._index.matching(event, record.facts):
            if group.positions:
                if positioned is None:
                    positioned = Frame(with_position(record.payload, self._history.position), event)
                self._delivery.send(group, positioned)
            else:
                if plain is None:
                    plain = Frame(record.payload, event)
                self._delivery.send(group, plain)

    def snapshot_reply(self) -> FullStateSnapshot:
        """Return everything as it is now."""
        return FullStateSnapshot(timestamp=self._clock.now_ms(), data=self._snapshot())

    def resync(self, reason: Reason) -> None:
        """Send everyone connected the state as it is now: events were missed on this node."""
        if not self._connected:
            return
        whole = self._restart(reason)
        for subscriber in list(self._connected.values()):
            # One that catches up reads the history, and finds out by itself.
            if subscriber.caught_up:
                opted_in = subscriber.group.positions
                self._delivery.send_to(subscriber, whole if opted_in else whole[1:])

    def heartbeat_reply(self, subscriber: Subscriber) -> HeartbeatAck:
        """Return a sign of life."""
        now = self._clock.now_ms()
        return HeartbeatAck(timestamp=now, monitor_id=subscriber.id, server_timestamp=now)

    def heartbeat(self) -> None:
        """Send a sign of life to every monitor that holds the topic."""
        for subscriber in list(self._connected.values()):
            if Topic.HEARTBEAT in self.subscription(subscriber).topics:
                self._delivery.send_to(
                    subscriber, [reply_frame(self.heartbeat_reply(subscriber), None)]
                )

    def page(self, subscriber: Subscriber, since: int, most: int) -> ResyncResponse:
        """Answer a `resync_request`, by the monitor's own topics and filters."""
        subscription = self.subscription(subscriber)
        page = self._history.page(
            since,
            most,
            lambda record: should_monitor_receive_event(subscription, record.event, record.facts),
        )
        now = self._clock.now_ms()
        oldest = self._history.oldest_timestamp()
        return ResyncResponse(
            timestamp=now,
            monitor_id=subscriber.id,
            events=[msgspec.Raw(record.payload) for record in page.records],
            has_more=page.has_more,
            oldest_available_timestamp=now if oldest is None else oldest,
        )

    def _flushed_group(
        self, wire: Wire, positions: bool, subscription: Subscription
    ) -> MonitorGroup:
        """Return the group to join, with nothing pending."""
        self._delivery.flush_group(self._index.group(wire, positions, subscription))
        # Asked for again: if the flush found its last member broken, the group is gone.
        return self._index.group(wire, positions, subscription)

    def _leave(self, subscriber: Subscriber) -> None:
        group = _group_of(subscriber)
        self._delivery.flush_group(group)
        group.members.pop(subscriber, None)
        self._index.discard(group)

    def _retained(self, subscriber: Subscriber, record: Record) -> Frame | None:
        """Return the frame of a retained event, if this monitor is to have it."""
        subscription = self.subscription(subscriber)
        if not should_monitor_receive_event(subscription, record.event, record.facts):
            return None
        position = Position(self._history.epoch, record.sequence)
        return Frame(with_position(record.payload, position), record.event)

    def _restart(self, reason: Reason) -> list[Frame]:
        self.resyncs += 1
        required = ResyncRequired(
            timestamp=self._clock.now_ms(), reason=reason, position=str(self._history.position)
        )
        return [reply_frame(required, None), reply_frame(self.snapshot_reply(), None)]


def _group_of(subscriber: Subscriber) -> MonitorGroup:
    return cast("MonitorGroup", subscriber.group)
