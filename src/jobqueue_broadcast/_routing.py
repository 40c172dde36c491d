"""Which monitors an event goes to, by index: the answer of `should_monitor_receive_event`, sooner.

Groups without filters are found by the event's type. Groups with filters stand in one of three
lists, by their most selective filter, so that an event meets few that will not have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import UNSET

from jobqueue_broadcast.delivery import Group, Subscriber
from jobqueue_broadcast.events import Event
from jobqueue_broadcast.frames import Wire
from jobqueue_broadcast.predicates import Filters, JobFacts, Subscription, worker_of
from jobqueue_broadcast.topics import event_topics

__all__ = ["MonitorGroup", "MonitorIndex"]


class MonitorGroup(Group):
    """Monitors with the same subscription, on the same wire."""

    __slots__ = ("subscription",)

    members: dict[Subscriber, None]

    def __init__(self, wire: Wire, positions: bool, subscription: Subscription) -> None:
        super().__init__(wire, positions, {})
        self.subscription = subscription


class _Routes:
    """The groups that hold a topic of one event type."""

    __slots__ = ("by_job_type", "by_worker", "everything", "other")

    def __init__(self) -> None:
        self.everything: list[MonitorGroup] = []
        self.by_worker: dict[str, list[MonitorGroup]] = {}
        self.by_job_type: dict[str, list[MonitorGroup]] = {}
        self.other: list[MonitorGroup] = []

    def add(self, group: MonitorGroup) -> None:
        filters = group.subscription.filters
        if not filters:
            self.everything.append(group)
        elif filters.worker_ids is not UNSET:
            for worker_id in filters.worker_ids:
                self.by_worker.setdefault(worker_id, []).append(group)
        elif filters.job_types is not UNSET:
            for job_type in filters.job_types:
                self.by_job_type.setdefault(job_type, []).append(group)
        else:
            self.other.append(group)

    def filtered(self, worker_id: str | None, facts: JobFacts | None) -> Iterator[MonitorGroup]:
        """Yield the groups whose filters let such an event pass, once each."""
        for index, key in (
            (self.by_worker, worker_id),
            (self.by_job_type, facts.job_type if facts else None),
        ):
            # A filter that does not apply to an event lets it pass.
            found = (
                dict.fromkeys(group for groups in index.values() for group in groups)
                if key is None
                else index.get(key, ())
            )
            for group in found:
                if _passes(group.subscription.filters, worker_id, facts):
                    yield group
        for group in self.other:
            if _passes(group.subscription.filters, worker_id, facts):
                yield group


def _passes(filters: Filters, worker_id: str | None, facts: JobFacts | None) -> bool:
    return filters.pass_event(worker_id, facts)


class MonitorIndex:
    """All connected monitors, by what they are to receive."""

    def __init__(self) -> None:
        self._groups: dict[tuple[Wire, bool, Subscription], MonitorGroup] = {}
        self._routes: dict[type[Event], _Routes] = {}

    @property
    def group_count(self) -> int:
        """How many different subscriptions there are."""
        return len(self._groups)

    def group(self, wire: Wire, positions: bool, subscription: Subscription) -> MonitorGroup:
        """Return the group of this subscription, made when missing."""
        key = (wire, positions, subscription)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = MonitorGroup(wire, positions, subscription)
            self._routes.clear()
        return group

    def discard(self, group: MonitorGroup) -> None:
        """Drop a group that has no members left."""
        key = (group.wire, group.positions, group.subscription)
        # Another group may stand under this key by now.
        if not group.members and self._groups.get(key) is group:
            del self._groups[key]
            self._routes.clear()

    def matching(self, event: Event, facts: JobFacts | None) -> Sequence[MonitorGroup]:
        """Return the groups an event goes to, once each.

        Args:
            event: The event; the routes of its class are remembered.
            facts: What is known of its job.
        """
        routes = self._routes.get(type(event))
        if routes is None:
            routes = self._routes[type(event)] = self._find(event_topics(event))
        if not (routes.by_worker or routes.by_job_type or routes.other):
            # Not a copy: routes are made anew when the groups change.
            return routes.everything
        return [*routes.everything, *routes.filtered(worker_of(event), facts)]

    def _find(self, topics: frozenset[str]) -> _Routes:
        routes = _Routes()
        for group in self._groups.values():
            if not topics.isdisjoint(group.subscription.topics):
                routes.add(group)
        return routes
