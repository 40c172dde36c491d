"""Resuming while events go on (R3): what each peer received in all is one contiguous run.

Peers on connections that fill, drain, break and are taken up again at the last position they saw;
monitors with and without filters, clients that subscribe and unsubscribe in between. Hypothesis
picks the schedule; a model that knows nothing of deliveries says what each peer should have seen.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobqueue_broadcast import delivery, history
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.commands import JobSubscribed, JobUnsubscribed
from jobqueue_broadcast.events import (
    Event,
    JobAssigned,
    JobCompleted,
    JobData,
    JobEvent,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    JobSubmitted,
    MachineUpdate,
    SystemStats,
    WorkerConnected,
    WorkerData,
)
from jobqueue_broadcast.frames import reply_frame
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.predicates import Filters, JobFacts, Subscription
from jobqueue_broadcast.testing import ManualClock
from tests.doubles import HandLoop, SlowConnection

JOBS = ["job-0", "job-1", "job-2"]
TYPES = ["comfyui", "a1111", "comfyui"]
SUBSCRIPTIONS = [
    Subscription.of(None),
    Subscription.of(["jobs"], Filters.of(job_types=["comfyui"])),
    Subscription.of(["jobs:status", "machines"], Filters.of(worker_ids=["worker-1"])),
    Subscription.of(["jobs:progress", "system_stats"]),
]
CONFLATED = (JobProgress, SystemStats, MachineUpdate)
FIRST_TIMESTAMP = 1_000_000


class Seen(NamedTuple):
    """A frame a peer received: which event it tells of, and where the peer then stood."""

    kind: str  # "event", "state", "resync", "greeting" or "reply"
    position: Position | None
    event: int  # its sequence; 0 for none
    job: str | None


class Told(NamedTuple):
    event: Event
    facts: JobFacts | None


class World:
    """One broadcaster, what was broadcast, and the peers."""

    def __init__(self, batched: bool, limit: int, outbox: int) -> None:
        self.clock = ManualClock()
        self.broadcaster = EventBroadcaster(
            clock=self.clock, history_limit=limit, outbox_limit=outbox
        )
        self.loop = HandLoop()
        if batched:
            self.broadcaster.bind(self.loop.call_soon, self.loop.call_soon)
        self.events: dict[int, Told] = {}
        self.sequence_of: dict[int, int] = {}
        self.facts: dict[str, JobFacts] = {}
        self.stage: dict[str, int] = dict.fromkeys(JOBS, 0)
        # A client's first state is number 0.1; beginning with one job of its own, of which nothing
        # more is heard, lets every later state be told from an event by its position.
        self.broadcast(JobSubmitted(job_id="warm", job_data=_data("warm", "warm")))
        self.peers: list[Peer] = [
            Monitor(self, 0),
            Monitor(self, 1),
            Client(self, 2),
            Client(self, 3),
        ]

    def broadcast(self, event: Event) -> None:
        sequence = len(self.events) + 1
        timestamp = FIRST_TIMESTAMP + sequence
        event = msgspec.structs.replace(event, timestamp=timestamp)
        if isinstance(event, JobSubmitted):
            self.facts[event.job_id] = JobFacts.of(event.job_data)
        facts = self.facts.get(event.job_id) if isinstance(event, JobEvent) else None
        self.events[sequence] = Told(event, facts)
        self.sequence_of[timestamp] = sequence
        self.broadcaster.broadcast(event)

    @property
    def head(self) -> int:
        return self.broadcaster.history.head

    def job_event(self, number: int, choice: int) -> None:
        """Let a job take its next step; each step is one that its clients are told of."""
        job_id = JOBS[number % 3]
        worker = f"worker-{choice % 2 + 1}"
        if self.stage[job_id] == 0:
            self.stage[job_id] = 1
            self.broadcast(JobSubmitted(job_id=job_id, job_data=_data(job_id, TYPES[number % 3])))
        elif choice in (0, 1):
            self.stage[job_id] = 0
            self.broadcast(
                JobCompleted(job_id=job_id, worker_id=worker)
                if choice
                else JobFailed(job_id=job_id, error="e")
            )
        elif choice == 2:
            self.broadcast(JobAssigned(job_id=job_id, worker_id=worker))
        elif choice == 3:
            self.broadcast(
                JobStatusChanged(job_id=job_id, old_status="assigned", new_status="in_progress")
            )
        else:
            self.broadcast(JobProgress(job_id=job_id, worker_id=worker, progress=choice / 8))

    def other_event(self, choice: int) -> None:
        worker = WorkerData(id="worker-1", status="idle", connected_at=1)
        self.broadcast(
            [
                MachineUpdate(machine_id="machine-1"),
                SystemStats(stats={}),  # type: ignore[arg-type]
                WorkerConnected(worker_id="worker-1", machine_id="m", worker_data=worker),
            ][choice % 3]
        )


def _data(job_id: str, job_type: str) -> JobData:
    return JobData(id=job_id, job_type=job_type, created_at=1)


class Peer:
    """One monitor or client over all its connections."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.id = f"peer-{number}"
        self.number = number
        self.position: Position | None = None
        self.seen: list[Seen] = []
        self.connection: SlowConnection | None = None
        self.connects = 0

    def connect(self, room: int) -> None:
        """Connect, or connect again: what was not read by now is lost."""
        self.connection = SlowConnection(room)
        self.connects += 1
        self.add(self.connection, self.position or "new")

    def add(self, connection: SlowConnection, resume: Any) -> None:
        raise NotImplementedError

    def read(self, most: int) -> None:
        if self.connection is not None:
            for payload in self.connection.read(most):
                self.take(payload)

    def give_up(self, choice: int) -> None:
        """The connection breaks: noticed by the adapter, by writing, or by nobody yet."""
        if self.connection is None:
            return
        if choice % 3 == 0:
            self.remove(self.connection)
        elif choice % 3 == 1:
            self.connection.broken = True
        self.connection.buffer.clear()
        self.connection = None

    def remove(self, connection: SlowConnection) -> None:
        raise NotImplementedError

    def take(self, payload: bytes) -> None:
        frame = msgspec.json.decode(payload)
        text = frame.get("position")
        position = Position.parse(text) if text is not None else None
        if position is not None:
            assert self.position is None or position >= self.position, "positions went back"
            self.position = position
        event = self.world.sequence_of.get(frame["timestamp"], 0)
        if frame["type"] == "resync_required":
            kind = "resync"
        elif frame["type"] == "connection_established":
            kind = "greeting"
        elif not event:
            kind = "reply"
        elif position == Position(self.world.broadcaster.history.epoch, event):
            kind = "event"
        else:
            kind = "state"
        self.seen.append(Seen(kind, position, event, frame.get("job_id")))

    def finish(self) -> None:
        """Connect for good and read everything."""
        self.connect(10_000_000)
        while self.world.loop.run() or (self.connection and self.connection.buffer):
            self.read(1_000_000)

    def check(self) -> None:
        raise NotImplementedError


def superseded(missing: Event, later: list[Event]) -> bool:
    """Whether an outbox may drop an event for a later one."""
    if isinstance(missing, JobProgress):
        return any(
            isinstance(event, JobProgress | JobCompleted | JobFailed)
            and event.job_id == missing.job_id
            for event in later
        )
    return isinstance(missing, CONFLATED) and any(type(event) is type(missing) for event in later)


def check_run(world: World, got: list[int], expected: list[int], cut: bool = False) -> None:
    """One contiguous run: all that was expected, in order, but for what was conflated.

    What it was conflated with comes later in the run, unless the run was cut short.
    """
    assert got == sorted(set(got)), f"repeated or reordered: {got}"
    assert set(got) <= set(expected), f"not for this peer: {sorted(set(got) - set(expected))}"
    for sequence in sorted(set(expected) - set(got)):
        later = [world.events[s].event for s in (world.events if cut else got) if s > sequence]
        assert superseded(world.events[sequence].event, later), f"{sequence} is missing in {got}"


class Monitor(Peer):
    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.wanted = SUBSCRIPTIONS[number]
        # From which sequence on it holds what.
        self.held: list[tuple[int, Subscription]] = []

    def add(self, connection: SlowConnection, resume: Any) -> None:
        begin = resume.sequence if isinstance(resume, Position) else self.world.head
        if resume == "new":
            self.seen.clear()
            self.held.clear()
        self.held = [(at, what) for at, what in self.held if at < begin]
        self.held.append((begin, self.wanted))
        connection.attach(
            self.world.broadcaster.add_monitor(
                self.id,
                connection,
                self.wanted.topics,
                self.wanted.filters,
                resume=resume,
            )
        )

    def remove(self, connection: SlowConnection) -> None:
        self.world.broadcaster.remove_monitor(self.id, connection)

    def update(self, choice: int) -> None:
        subscriber = self.world.broadcaster.monitors.get(self.id)
        if self.connection is None or subscriber is None:
            return
        self.wanted = wanted = SUBSCRIPTIONS[choice % len(SUBSCRIPTIONS)]
        self.world.broadcaster.update_subscription(self.id, wanted.topics, wanted.filters)
        subscriber.when_caught_up(lambda: self.held.append((self.world.head, wanted)))

    def holds(self, sequence: int) -> Subscription:
        return [what for at, what in self.held if at < sequence][-1]

    def expected(self, begin: int, end: int) -> list[int]:
        return [
            sequence
            for sequence in range(begin + 1, end + 1)
            if monitor_receives(self.holds(sequence), self.world.events[sequence])
        ]

    def check(self) -> None:
        run: list[int] = []
        begin = self.held[0][0]
        for seen in self.seen:
            if seen.kind == "event":
                run.append(seen.event)
            elif seen.kind == "resync":
                assert seen.position is not None
                if run:
                    check_run(self.world, run, self.expected(begin, run[-1]), cut=True)
                run, begin = [], seen.position.sequence
        # Who narrowed its topics in the meantime is not sent what an event was conflated with.
        cut = len(self.held) > 1
        check_run(self.world, run, self.expected(begin, self.world.head), cut)


def monitor_receives(subscription: Subscription, told: Told) -> bool:
    """The rule once more, in other words."""
    event, facts = told
    topics = {
        "MachineUpdate": {"machines"},
        "SystemStats": {"system_stats"},
        "WorkerConnected": {"workers"},
        "JobProgress": {"jobs", "jobs:progress"},
    }.get(type(event).__name__, {"jobs", "jobs:status"})
    if not topics & subscription.topics:
        return False
    filters = subscription.filters
    worker = getattr(event, "worker_id", None)
    if isinstance(filters.worker_ids, frozenset) and isinstance(worker, str):
        if worker not in filters.worker_ids:
            return False
    if isinstance(filters.job_types, frozenset) and facts is not None:
        return facts.job_type in filters.job_types
    return True


class Client(Peer):
    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        # Per job, when the server began and ended subscriptions, as far as it had got by then.
        self.spans: dict[str, list[tuple[int, int | None]]] = {job: [] for job in JOBS}
        world.broadcaster.subscribe_client_to_job(self.id, "warm")
        self.asked = 0

    @property
    def jobs(self) -> frozenset[str]:
        return self.world.broadcaster.clients.jobs_of(self.id)

    def add(self, connection: SlowConnection, resume: Any) -> None:
        if resume == "new":
            self.seen.clear()
        connection.attach(self.world.broadcaster.add_client(self.id, connection, resume=resume))

    def remove(self, connection: SlowConnection) -> None:
        self.world.broadcaster.remove_client(self.id, connection)

    def subscribe(self, number: int) -> None:
        """As a peer does, with an answer, or as the host does, connected or not."""
        job_id = JOBS[number % 3]
        if job_id not in self.jobs:
            self.spans[job_id].append((self.world.head, None))
        if number < 4 and self.world.broadcaster.clients.get(self.id) is not None:
            self.asked += 1
            reply = JobSubscribed(timestamp=self.asked, job_id=job_id)
            self.world.broadcaster.clients.subscribe(self.id, job_id, [reply])
            self.world.broadcaster.delivery.settle()
        else:
            self.world.broadcaster.subscribe_client_to_job(self.id, job_id)

    def unsubscribe(self, number: int) -> None:
        job_id = JOBS[number % 3]
        if job_id in self.jobs:
            self.spans[job_id][-1] = (self.spans[job_id][-1][0], self.world.head)
        self.world.broadcaster.unsubscribe_client_from_job(self.id, job_id)
        subscriber = self.world.broadcaster.clients.get(self.id)
        if subscriber is not None:
            reply = reply_frame(JobUnsubscribed(timestamp=1, job_id=job_id))
            subscriber.when_caught_up(
                lambda: self.world.broadcaster.delivery.send_to(subscriber, [reply])
            )
            self.world.broadcaster.delivery.settle()

    def check(self) -> None:
        for job_id in JOBS:
            self.check_job(job_id)

    def check_job(self, job_id: str) -> None:
        history_of_job = [
            sequence
            for sequence, told in self.world.events.items()
            if isinstance(told.event, JobEvent) and told.event.job_id == job_id
        ]
        last = 0  # the newest event of the job that is known of
        states: list[Seen] = []
        resumed: Position | None = None
        run: list[int] = []
        begin = 0
        resyncs = 0

        def end_run(cut: bool = True) -> None:
            if run:
                expected = [s for s in history_of_job if begin < s <= run[-1]]
                check_run(self.world, run, expected, cut)

        for seen in self.seen:
            if seen.kind == "resync":
                resyncs += 1
            elif seen.job == job_id and seen.kind == "state":
                assert seen.position is not None
                newest = states[-1].position if states else None
                whole = newest is not None and resumed is not None and resumed > newest
                if not states or seen.position.sequence != begin or run or whole:
                    # Another state begins: of another subscription, of a new beginning, or
                    # because the one before did not arrive whole.
                    end_run()
                    if states and whole:
                        again = any(b >= begin for b, _ in self.spans[job_id])
                        assert again or resyncs, f"{job_id}: its state came twice"
                    run, begin, states = [], seen.position.sequence, []
                    resyncs = 0
                states.append(seen)
                last = seen.event
            elif seen.job == job_id and seen.kind == "event":
                if not run and not states:
                    # No state came first: there was none to tell of.
                    assert seen.event == history_of_job[0]
                assert any(
                    b < seen.event and (e is None or seen.event <= e) for b, e in self.spans[job_id]
                ), f"{job_id}: {seen.event} was after the subscription"
                run.append(seen.event)
                last = seen.event
            elif seen.kind == "greeting":
                resumed = seen.position
        end_run(cut=job_id not in self.jobs)
        if job_id in self.jobs and history_of_job:
            end = history_of_job[-1]
            told = self.world.events[end].event
            # A status or an assignment is no part of a state.
            if not isinstance(told, JobAssigned | JobStatusChanged):
                assert last == end, f"{job_id}: {end} is missing"


OPERATIONS = st.tuples(
    st.sampled_from(
        [
            *["job"] * 5,
            *["read"] * 3,
            *["connect", "subscribe", "loop"] * 2,
            *["other", "break", "unsubscribe", "update"],
        ]
    ),
    st.integers(0, 3),
    st.integers(0, 7),
)
SCHEDULES = st.tuples(
    st.booleans(),
    st.sampled_from([2, 5, 1000]),
    st.sampled_from([300, 1200, 100_000]),
    st.lists(OPERATIONS, min_size=30, max_size=90),
)


def play(schedule: tuple[bool, int, int, list[tuple[str, int, int]]], counts: Counter[str]) -> None:
    batched, limit, outbox, operations = schedule
    world = World(batched, limit, outbox)
    for peer in world.peers:
        peer.connect(150)
    for operation, number, choice in operations:
        peer = world.peers[number]
        match operation:
            case "job":
                world.job_event(number, choice)
            case "other":
                world.other_event(choice)
            case "read":
                peer.read(choice + 1)
            case "connect":
                peer.connect([0, 150, 400, 10_000][choice % 4])
            case "break":
                peer.give_up(choice)
            case "subscribe" if isinstance(peer, Client):
                peer.subscribe(choice)
            case "unsubscribe" if isinstance(peer, Client):
                peer.unsubscribe(choice)
            case "update" if isinstance(peer, Monitor):
                peer.update(choice)
            case _:
                world.loop.run()
    for peer in world.peers:
        peer.finish()
        peer.check()
    count(world, counts)


def count(world: World, counts: Counter[str]) -> None:
    stats = world.broadcaster.stats()
    counts["schedules"] += 1
    counts["events"] += len(world.events)
    counts["connections"] += sum(peer.connects for peer in world.peers)
    counts["frames read"] += sum(len(peer.seen) for peer in world.peers)
    counts["conflated"] += stats.conflated_total
    counts["too slow"] += stats.too_slow_total
    counts["resyncs"] += stats.resync_required_total
    for peer in world.peers:
        counts["states"] += sum(seen.kind == "state" for seen in peer.seen)


@pytest.fixture(autouse=True)
def _small_pieces() -> Iterator[None]:
    """Catch up in many small steps, so that few events are enough for all interleavings."""
    with patch.object(delivery, "_PIECE", 200), patch.object(history, "_CHUNK", 2):
        yield


def run_schedules(examples: int) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, database=None)
    @given(SCHEDULES)
    def schedules(schedule: tuple[bool, int, int, list[tuple[str, int, int]]]) -> None:
        play(schedule, counts)

    schedules()
    print("resume racing with broadcast:", *(f"{n:,} {what}," for what, n in counts.items()))


def test_what_a_peer_receives_is_one_contiguous_run() -> None:
    run_schedules(100)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_a_peer_receives_is_one_contiguous_run_soak() -> None:
    run_schedules(10_000)
