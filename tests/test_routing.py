from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import UNSET

from jobqueue_broadcast._routing import MonitorIndex
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.client_format import ClientFrame
from jobqueue_broadcast.event_types import declare_event
from jobqueue_broadcast.events import (
    Event,
    JobEvent,
    JobFailed,
    JobSubmitted,
    SystemCounts,
    SystemStats,
    WorkerEvent,
)
from jobqueue_broadcast.frames import TextWire
from jobqueue_broadcast.predicates import (
    Filters,
    JobFacts,
    Subscription,
    is_job_event,
    should_client_receive_event,
    should_monitor_receive_event,
)
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from jobqueue_broadcast.topics import known_topics
from tests.strategies import events, filters, job_ids, worker_ids


class StepFrame(ClientFrame, frozen=True, kw_only=True, tag="routing_step"):
    """A host's own frame for clients."""


@declare_event(topics=["routing:steps", "jobs"], client_format=lambda event: _step_frame(event))
class RoutingStep(JobEvent, frozen=True, kw_only=True, tag="routing_step"):
    """A host's own job event that clients are told of."""

    worker_id: str


@declare_event(topics=["routing:steps"])
class RoutingNote(JobEvent, frozen=True, kw_only=True, tag="routing_note"):
    """A host's own job event that clients are not told of."""


@declare_event(topics=["routing:tools", "workers"])
class RoutingTool(WorkerEvent, frozen=True, kw_only=True, tag="routing_tool"):
    """A host's own event that is not about a job."""


def _step_frame(event: RoutingStep) -> StepFrame:
    return StepFrame(timestamp=event.timestamp, job_id=event.job_id)


OWN_EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(RoutingStep, job_id=job_ids, worker_id=worker_ids),
    st.builds(RoutingNote, job_id=job_ids),
    st.builds(RoutingTool, worker_id=worker_ids),
)
TOPICS = st.none() | st.frozensets(st.sampled_from(sorted(known_topics())), min_size=1, max_size=3)
MONITORS = st.sampled_from(["m1", "m2", "m3"])
CLIENTS = st.sampled_from(["c1", "c2"])


class Routing(RuleBasedStateMachine):
    """Exactly those whom the predicates name receive exactly one frame each."""

    @initialize()
    def begin(self) -> None:
        self.broadcaster = EventBroadcaster(clock=ManualClock())
        self.monitors: dict[str, tuple[RecordingConnection, Subscription]] = {}
        self.clients: dict[str, RecordingConnection] = {}
        self.jobs: dict[str, set[str]] = {"c1": set(), "c2": set()}
        self.facts: dict[str, JobFacts] = {}
        self.wires = [TextWire(), TextWire()]

    @rule(
        monitor=MONITORS,
        topics=TOPICS,
        narrowed=st.none() | filters(),
        wire=st.integers(0, 1),
        resume=st.sampled_from([None, "new"]),
    )
    def add_monitor(self, monitor: str, topics: Any, narrowed: Any, wire: int, resume: Any) -> None:
        connection = RecordingConnection(self.wires[wire])
        self.broadcaster.add_monitor(monitor, connection, topics, narrowed, resume=resume)
        self.monitors[monitor] = (connection, Subscription.of(topics, narrowed))

    @rule(monitor=MONITORS)
    def remove_monitor(self, monitor: str) -> None:
        connection, _ = self.monitors.pop(monitor, (RecordingConnection(), None))
        self.broadcaster.remove_monitor(monitor, connection)

    @rule(monitor=MONITORS, topics=TOPICS, narrowed=st.none() | filters())
    def update(self, monitor: str, topics: Any, narrowed: Any) -> None:
        if monitor in self.monitors:
            self.broadcaster.update_subscription(monitor, topics, narrowed)
            connection, _ = self.monitors[monitor]
            self.monitors[monitor] = (connection, Subscription.of(topics, narrowed))

    @rule(client=CLIENTS)
    def add_client(self, client: str) -> None:
        self.clients[client] = RecordingConnection()
        self.broadcaster.add_client(client, self.clients[client])

    @rule(client=CLIENTS)
    def remove_client(self, client: str) -> None:
        connection = self.clients.pop(client, RecordingConnection())
        self.broadcaster.remove_client(client, connection)

    @rule(client=CLIENTS, job=job_ids)
    def subscribe(self, client: str, job: str) -> None:
        self.broadcaster.subscribe_client_to_job(client, job)
        self.jobs[client].add(job)

    @rule(client=CLIENTS, job=job_ids)
    def unsubscribe(self, client: str, job: str) -> None:
        self.broadcaster.unsubscribe_client_from_job(client, job)
        self.jobs[client].discard(job)

    @rule(event=events() | OWN_EVENTS)
    def broadcast(self, event: Event) -> None:
        connections = [connection for connection, _ in self.monitors.values()]
        for connection in [*connections, *self.clients.values()]:
            connection.take()
        late = self.broadcaster.jobs.late
        self.broadcaster.broadcast(event)
        told = self.broadcaster.jobs.late == late
        if isinstance(event, JobSubmitted):
            self.facts[event.job_id] = JobFacts.of(event.job_data)
        facts = self.facts.get(event.job_id) if is_job_event(event) else None
        for name, (connection, subscription) in self.monitors.items():
            expected = should_monitor_receive_event(subscription, event, facts)
            assert len(connection.take()) == expected, name
        for name, connection in self.clients.items():
            expected = told and should_client_receive_event(self.jobs[name], event)
            assert len(connection.take()) == expected, name

    @invariant()
    def holds_no_more_than_it_needs(self) -> None:
        if hasattr(self, "broadcaster"):
            stats = self.broadcaster.stats()
            assert stats.monitors == len(self.monitors)
            assert stats.monitor_groups <= len(self.monitors)
            assert stats.subscriptions == sum(map(len, self.jobs.values()))


Routing.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestRouting = Routing.TestCase


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_routing_soak() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Routing, settings=settings(max_examples=2_000, stateful_step_count=60, deadline=None)
    )


def ids_matching(index: MonitorIndex, worker: str | None, facts: JobFacts | None) -> list[Any]:
    found = index.matching(JobFailed(job_id="j", error="e", worker_id=worker or UNSET), facts)
    return [group.subscription.filters for group in found]


def test_an_event_meets_each_group_once_whatever_its_filters() -> None:
    index = MonitorIndex()
    wire = TextWire()
    of: Callable[..., Filters] = Filters.of
    many = of(worker_ids=["w1", "w2"], job_types=["x"])
    by_type = of(job_types=["x", "y"])
    by_range = of(priority_range=(1, 5))
    for each in (Filters(), many, by_type, by_range):
        index.group(wire, False, Subscription.of(["jobs"], each))
    index.group(wire, False, Subscription.of(["workers"]))
    assert index.group_count == 5
    assert ids_matching(index, None, None) == [Filters(), many, by_type, by_range]
    assert ids_matching(index, "w1", JobFacts("x", 3)) == [Filters(), many, by_type, by_range]
    assert ids_matching(index, "w3", JobFacts("z", 9)) == [Filters()]
    assert ids_matching(index, "w1", JobFacts("y", 9)) == [Filters(), by_type]


def test_a_group_that_was_dropped_before_does_not_take_its_successor_along() -> None:
    index = MonitorIndex()
    wire = TextWire()
    first = index.group(wire, False, Subscription.of(None))
    index.discard(first)
    second = index.group(wire, False, Subscription.of(None))
    assert second is not first
    index.discard(first)
    assert index.group(wire, False, Subscription.of(None)) is second
    second.members[object()] = None  # type: ignore[index]
    index.discard(second)
    assert index.group_count == 1


def test_where_no_monitor_has_filters_none_are_asked() -> None:
    index = MonitorIndex()
    group = index.group(TextWire(), False, Subscription.of(["jobs"]))
    assert index.matching(JobFailed(job_id="j", error="e"), None) == [group]
    assert index.matching(SystemStats(stats=SystemCounts()), None) == []
