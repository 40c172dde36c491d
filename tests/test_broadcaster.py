import gc
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

import msgspec
import pytest

from jobqueue_broadcast.auth import ANONYMOUS, Principal
from jobqueue_broadcast.backplane import Claim, InProcessBackplane, RemoteBackplane
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.clock import SystemClock
from jobqueue_broadcast.control import PeerReplaced, PrincipalRevoked, decode_control
from jobqueue_broadcast.errors import (
    BackplaneFull,
    IdTaken,
    InvalidArgument,
    NotBound,
    Replaced,
    UndeclaredEvent,
    WrongThread,
)
from jobqueue_broadcast.event_types import declare_event
from jobqueue_broadcast.events import (
    Event,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    WorkerConnected,
    WorkerData,
    encode,
)
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.doubles import BrokenConnection, HandLoop, LogBackplane, SharedIds, SlowConnection
from tests.samples import completed, progress, submitted, types

NOW = 1_642_700_000_000
ALICE = Principal(id="alice")


class Undeclared(Event, frozen=True, kw_only=True, tag="undeclared_of_test_broadcaster"):
    """Never declared."""


class StepFrame(msgspec.Struct, tag_field="type", tag="step_of_test_broadcaster"):
    timestamp: int


def step_frame(step: "Step") -> StepFrame:
    if not step.good:
        raise ValueError("not good")
    return StepFrame(step.timestamp)


@declare_event(topics=["steps_of_test_broadcaster"], client_format=step_frame)
class Step(JobEvent, frozen=True, kw_only=True, tag="step_of_test_broadcaster"):
    job_id: str
    good: bool


def made(**options: Any) -> tuple[EventBroadcaster, ManualClock]:
    clock = ManualClock()
    return EventBroadcaster(clock=clock, **options), clock


# --- what a host does -----------------------------------------------------------------------------


def test_an_event_is_stamped_and_reaches_monitors_and_clients_in_their_formats() -> None:
    broadcaster, _ = made()
    monitor, client = RecordingConnection(), RecordingConnection()
    broadcaster.add_monitor("m", monitor)
    broadcaster.add_client("c", client)
    broadcaster.subscribe_client_to_job("c", "a")
    broadcaster.broadcast(completed())
    assert monitor.frames[1] == {
        "type": "complete_job",
        "timestamp": NOW,
        "job_id": "a",
        "worker_id": "w",
        "completed_at": NOW,
    }
    assert client.frames[1]["result"] == {"status": "success", "data": None}
    broadcaster.broadcast(JobProgress(job_id="b", worker_id="w", progress=0, timestamp=NOW - 1))
    assert monitor.frames[2]["timestamp"] == NOW - 1
    assert isinstance(EventBroadcaster().clock, SystemClock)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"type": "job_failed"}, InvalidArgument),
        (Undeclared(), UndeclaredEvent),
        (JobCompleted, InvalidArgument),
    ],
)
def test_what_is_no_event_is_refused_at_the_call(event: Any, error: type[Exception]) -> None:
    broadcaster, _ = made()
    with pytest.raises(error):
        broadcaster.broadcast(event)
    assert broadcaster.stats().events_total == 0


def test_a_declared_client_format_that_fails_is_refused_at_the_call() -> None:
    broadcaster, _ = made()
    with pytest.raises(InvalidArgument, match="client_format of Step raised"):
        broadcaster.broadcast(Step(job_id="a", good=False))
    assert broadcaster.stats().events_total == 0
    broadcaster.broadcast(Step(job_id="a", good=True))
    assert broadcaster.stats().events_total == 1


@pytest.mark.parametrize("limit", ["history_limit", "job_retention", "outbox_limit"])
def test_limits_are_checked(limit: str) -> None:
    for value in (-1, "many"):
        with pytest.raises(InvalidArgument, match=limit):
            EventBroadcaster(**{limit: value})  # type: ignore[arg-type]


def test_ids_are_checked() -> None:
    broadcaster, _ = made()
    bad: Any
    calls: list[Callable[[Any], object]] = [
        lambda bad: broadcaster.add_monitor(bad, RecordingConnection()),
        lambda bad: broadcaster.add_client(bad, RecordingConnection()),
        lambda bad: broadcaster.subscribe_client_to_job(bad, "a"),
        lambda bad: broadcaster.subscribe_client_to_job("c", bad),
        broadcaster.revoke,
        broadcaster.unrevoke,
    ]
    for call in calls:
        for bad in ("", None):
            with pytest.raises(InvalidArgument):
                call(bad)
    with pytest.raises(InvalidArgument, match="connected monitor"):
        broadcaster.update_subscription("m", None)


def test_events_of_other_threads_come_through_the_loop() -> None:
    broadcaster, _ = made()
    with pytest.raises(NotBound):
        broadcaster.broadcast_threadsafe(progress())
    loop = HandLoop()
    broadcaster.bind(loop.call_soon, loop.call_soon)
    errors: list[Exception] = []

    def other() -> None:
        try:
            broadcaster.broadcast(progress())
        except WrongThread as error:
            errors.append(error)
        broadcaster.broadcast_threadsafe(progress())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert (len(errors), broadcaster.stats().events_total) == (1, 0)
    loop.run()
    assert broadcaster.stats().events_total == 1
    broadcaster.unbind()
    with pytest.raises(NotBound):
        broadcaster.broadcast_threadsafe(progress())


def test_events_of_a_turn_are_written_together_and_unbinding_leaves_nothing() -> None:
    broadcaster, _ = made()
    loop = HandLoop()
    broadcaster.bind(loop.call_soon, loop.call_soon)
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection)
    broadcaster.broadcast(progress())
    broadcaster.broadcast(progress())
    assert connection.batches == 0
    loop.run()
    assert (connection.batches, len(connection.payloads)) == (1, 3)
    broadcaster.broadcast(progress())
    broadcaster.unbind()
    broadcaster.broadcast(progress())
    assert (connection.batches, len(connection.payloads)) == (3, 5)
    broadcaster.flush()


def test_states_of_before_are_restored_and_given_to_who_is_here_already() -> None:
    """Between a host's start and its `restore` peers may have come back, and found nothing."""
    broadcaster, _ = made()
    monitor, plain, resuming = (RecordingConnection() for _ in range(3))
    broadcaster.add_monitor("m", monitor)
    broadcaster.add_client("plain", plain)
    broadcaster.add_client("resuming", resuming, resume="new")
    for name in ("plain", "resuming"):
        broadcaster.subscribe_client_to_job(name, "a")
    worker = WorkerData(id="w", status="idle", connected_at=1)
    broadcaster.restore(
        [
            submitted(timestamp=1),
            completed(timestamp=2),
            WorkerConnected(worker_id="w", machine_id="m", worker_data=worker, timestamp=3),
        ]
    )
    state = broadcaster.full_state()
    assert (list(state["workers"]), [job["id"] for job in state["jobs"]["completed"]]) == (
        ["w"],
        ["a"],
    )
    assert types(monitor) == ["connected", "full_state_snapshot"]
    assert types(plain) == ["connection_established", "complete_job"]
    assert types(resuming) == [
        "connection_established",
        "resync_required",
        "job_accepted",
        "complete_job",
    ]
    info = broadcaster.job("a")
    assert info is not None
    assert (info.status, info.completed_at) == ("completed", 2)
    assert broadcaster.job("b") is None
    for bad in (progress(), Undeclared(timestamp=1), "no event"):
        with pytest.raises(InvalidArgument):
            broadcaster.restore([bad])  # type: ignore[list-item]


def test_an_empty_broadcaster_has_an_empty_full_state() -> None:
    broadcaster, _ = made()
    state = broadcaster.full_state()
    assert (state["workers"], state["machines"]) == ({}, {})
    assert state["jobs"] == {"pending": [], "active": [], "completed": [], "failed": []}
    assert set(state["system_stats"].values()) == {0}


def test_a_revoked_principal_is_closed_everywhere_and_refused() -> None:
    broadcaster, _ = made()
    alice, bob = Principal(id="alice"), Principal(id="bob")
    connections = [RecordingConnection() for _ in range(3)]
    broadcaster.add_monitor("m", connections[0], principal=alice)
    broadcaster.add_client("c", connections[1], principal=alice)
    broadcaster.add_monitor("n", connections[2], principal=bob)
    broadcaster.revoke(alice)
    closed = [connection.closed for connection in connections]
    assert closed == [(4401, "credential revoked"), (4401, "credential revoked"), None]
    assert (broadcaster.is_revoked(alice), broadcaster.is_revoked(bob)) == (True, False)
    broadcaster.unrevoke("alice")
    assert not broadcaster.is_revoked(alice)


# --- ticks ----------------------------------------------------------------------------------------


def test_a_credential_that_expires_closes_its_connections() -> None:
    broadcaster, clock = made()
    expiring = Principal(id="alice", expires_at=NOW / 1000 + 60)
    monitor, client, other = (RecordingConnection() for _ in range(3))
    broadcaster.add_monitor("m", monitor, principal=expiring)
    broadcaster.add_client("c", client, principal=expiring)
    broadcaster.add_monitor("n", other)
    clock.advance(59)
    broadcaster.tick()
    assert (monitor.closed, client.closed) == (None, None)
    clock.advance(1)
    broadcaster.tick()
    assert monitor.closed == client.closed == (4401, "credential expired")
    assert other.closed is None


def test_heartbeats_are_sent_when_due_and_once_after_a_long_sleep() -> None:
    broadcaster, clock = made(heartbeat_interval=30)
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection, ["heartbeat"])
    for seconds, expected in ((29.0, 0), (1.0, 1), (29.0, 1), (1e7, 2), (0.5, 2), (30.0, 3)):
        clock.advance(seconds)
        broadcaster.tick()
        assert types(connection).count("heartbeat_ack") == expected


def test_an_outcome_nobody_took_is_reported_and_the_hook_may_broadcast() -> None:
    reported: list[JobEvent] = []

    def hook(event: JobEvent) -> None:
        reported.append(event)
        if event.job_id != "mail":
            broadcaster.broadcast(submitted("mail"))

    broadcaster, clock = made(on_undelivered=hook, undelivered_after=30, undelivered_limit=2)
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection)
    for job_id in ("a", "b", "c"):
        broadcaster.broadcast(completed(job_id))
    # Reported early: more were waiting than may wait. Its mail comes after what was broadcast.
    assert [event.job_id for event in reported] == ["a"]
    jobs = [frame["job_id"] for frame in connection.frames[1:]]
    assert jobs == ["a", "b", "c", "mail"]
    broadcaster.broadcast(JobStatusChanged(job_id="b", old_status="completed", new_status="queued"))
    clock.advance(30)
    broadcaster.tick()
    assert [event.job_id for event in reported] == ["a", "c"]
    assert broadcaster.stats().undelivered_total == 2


# --- contracts ------------------------------------------------------------------------------------


def test_broadcast_never_raises_for_a_peers_sake() -> None:
    broadcaster, clock = made(stall_limit=1)
    good = RecordingConnection()
    broadcaster.add_monitor("good", good)
    for number in range(5):
        broadcaster.add_monitor(f"broken-{number}", BrokenConnection())
        broadcaster.add_client(f"broken-{number}", BrokenConnection())
        added = broadcaster.add_monitor(f"full-{number}", SlowConnection())
        added.connection = BrokenConnection()
        if number % 2:
            added.pause()
        broadcaster.subscribe_client_to_job(f"broken-{number}", "a")
    for _ in range(5):
        broadcaster.broadcast(progress())
        clock.advance(1)
        broadcaster.tick()
    broadcaster.revoke(ANONYMOUS)
    assert types(good)[1:6] == ["update_job_progress"] * 5
    assert (good.closed, len(broadcaster.subscribers())) == ((4401, "credential revoked"), 0)


def test_a_slow_reader_is_closed_with_4408_and_loses_nothing_by_resuming() -> None:
    broadcaster, _ = made(outbox_limit=500)
    slow = SlowConnection()
    slow.attach(broadcaster.add_client("c", slow, resume="new"))
    broadcaster.subscribe_client_to_job("c", "a")
    broadcaster.broadcast(submitted())
    for _ in range(20):
        broadcaster.broadcast(progress())
    assert broadcaster.stats().conflated_total == 19
    for _ in range(10):
        broadcaster.broadcast(
            JobStatusChanged(job_id="a", old_status="queued", new_status="in_progress")
        )
    assert slow.closed is not None
    assert slow.closed[0] == 4408
    broadcaster.broadcast(completed())
    slow.read()
    last = Position.parse(slow.frames[-1]["position"])
    again = RecordingConnection()
    broadcaster.add_client("c", again, resume=last)
    sequences = [Position.parse(frame["position"]).sequence for frame in slow.frames + again.frames]
    assert max(sequences) == 32
    assert types(again)[-1] == "complete_job"


def test_an_outcome_reaches_its_clients_even_where_no_ended_job_is_kept() -> None:
    broadcaster, _ = made(ended_job_limit=0, open_job_limit=0)
    connection = RecordingConnection()
    broadcaster.add_client("c", connection)
    broadcaster.subscribe_client_to_job("c", "a")
    broadcaster.broadcast(completed())
    assert types(connection) == ["connection_established", "complete_job"]
    assert (broadcaster.clients.subscription_count, len(broadcaster.jobs)) == (0, 0)


def everything(broadcaster: EventBroadcaster) -> dict[str, int]:
    stats = msgspec.structs.asdict(broadcaster.stats())
    return {name: value for name, value in stats.items() if not name.endswith("_total")}


def test_after_the_last_has_gone_nothing_is_left() -> None:
    broadcaster, clock = made(history_limit=0, full_state_limit=0, revocation_retention=1)
    for round_ in range(3):
        connections = [SlowConnection(50 * (number % 2)) for number in range(20)]
        for number, connection in enumerate(connections):
            resume = [None, "new", Position("another", 1)][number % 3]
            principal = Principal(id=f"p{number % 4}", expires_at=NOW / 1000 + 1e6)
            options: Any = {"principal": principal, "resume": resume}
            if number % 2:
                connection.attach(broadcaster.add_monitor(f"{number}", connection, **options))
            else:
                connection.attach(
                    broadcaster.add_client(f"{round_}-{number}", connection, **options)
                )
                broadcaster.subscribe_client_to_job(f"{round_}-{number}", f"job-{number}")
        for number in range(20):
            broadcaster.broadcast(submitted(f"job-{number}"))
            broadcaster.broadcast(completed(f"job-{number}"))
        broadcaster.revoke("p3")
        for number, connection in enumerate(connections):
            if number % 2:
                broadcaster.remove_monitor(f"{number}", connection)
            else:
                broadcaster.remove_client(f"{round_}-{number}", connection)
        assert everything(broadcaster)["clients_away"] == 10 * (round_ + 1)
    clock.advance(1e7)
    broadcaster.tick()
    assert everything(broadcaster) == dict.fromkeys(everything(broadcaster), 0)


def connect_and_leave(broadcaster: EventBroadcaster, clock: ManualClock, count: int) -> None:
    for number in range(count):
        connection = RecordingConnection()
        principal = Principal(id="p", expires_at=NOW / 1000 + 1e12)
        broadcaster.add_monitor(f"m{number}", connection, principal=principal)
        broadcaster.add_client(f"c{number}", connection, principal=principal)
        broadcaster.subscribe_client_to_job(f"c{number}", f"job-{number}")
        broadcaster.remove_monitor(f"m{number}", connection)
        if number % 2:
            broadcaster.remove_client(f"c{number}", connection)
        else:
            client = broadcaster.clients.get(f"c{number}")
            assert client is not None
            broadcaster.delivery.abort(client)
        if number % 50 == 49:
            clock.advance(120)
            broadcaster.tick()


def bytes_left(count: int) -> int:
    """Return the bytes that so many connects and disconnects leave behind."""
    broadcaster, clock = made()
    connect_and_leave(broadcaster, clock, 200)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        connect_and_leave(broadcaster, clock, count)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_connects_and_disconnects_leave_no_bytes_behind() -> None:
    left = bytes_left(1_000)
    print(f"1,000 connects and disconnects, clean and abrupt: {left:,} bytes left")
    assert left < 100_000


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_connects_and_disconnects_leave_no_bytes_behind_soak() -> None:
    left = bytes_left(50_000)
    print(f"50,000 connects and disconnects, clean and abrupt: {left:,} bytes left")
    assert left < 100_000


# --- backplanes -----------------------------------------------------------------------------------


def test_a_job_accepted_with_the_backplane_full_is_accepted_here() -> None:
    log = LogBackplane()
    broadcaster, _ = made(backplane=log)
    connection = RecordingConnection()
    broadcaster.add_client("c", connection, principal=Principal(id="alice"))
    log.full = True
    broadcaster.accept_job("a", Principal(id="alice"), "c")
    assert types(connection) == ["connection_established", "job_accepted"]
    with pytest.raises(BackplaneFull):
        broadcaster.broadcast(progress())


def test_what_only_a_remote_backplane_can_tell() -> None:
    local, _ = made(backplane=InProcessBackplane("e"))
    assert local.remote is None
    assert (local.reach(Position("e", 9)), local.look_up("a")) == (None, None)
    log = LogBackplane()
    remote = create_autospec(RemoteBackplane, instance=True)
    remote.attach.side_effect, remote.publish.side_effect = log.attach, log.publish
    remote.reach = lambda sequence: sequence
    broadcaster, _ = made(backplane=remote, ended_job_limit=0)
    assert broadcaster.remote is remote
    broadcaster.broadcast(submitted("known"))
    broadcaster.broadcast(JobFailed(job_id="forgotten", error="e"))
    log.give_back()
    for resume in (None, "new", Position("log", 2), Position("another", 9)):
        assert broadcaster.reach(resume) is None
    for job_id in ("known", "forgotten"):
        assert broadcaster.look_up(job_id) is None
    assert broadcaster.reach(Position("log", 3)) is not None
    assert broadcaster.look_up("unknown") is not None


def test_an_id_is_agreed_on_before_its_connection_is_registered() -> None:
    local, _ = made()
    with pytest.raises(StopIteration):
        local.prepare("monitor", "p", ALICE).send(None)
    nodes = SharedIds()
    nodes.prepare("client", Position("log", 9))
    with pytest.raises(IdTaken):
        nodes.broadcaster.prepare("client", "p", Principal(id="bob")).send(None)


def test_a_client_goes_on_with_what_it_followed_on_another_node() -> None:
    nodes = SharedIds()
    nodes.claim = Claim(owner="alice", number=2, known=True, previous=1, jobs={"a": (0, 0)})
    grant = nodes.prepare("client")
    connection = RecordingConnection()
    nodes.broadcaster.add_client("p", connection, principal=ALICE, grant=grant)
    # Where it was before is told.
    assert decode_control(nodes.log.published[-1]) == PeerReplaced(kind="client", id="p", number=2)
    nodes.broadcaster.broadcast(submitted())
    nodes.log.give_back()
    assert types(connection) == ["connection_established", "job_accepted"]
    nodes.clock.advance(60)
    nodes.broadcaster.tick()
    nodes.remote.hold.assert_called_once_with("client", "p", "alice", 2)
    # It connects elsewhere.
    nodes.broadcaster.intake.receive(9, encode(PeerReplaced(kind="client", id="p", number=3)))
    assert connection.closed == (4409, "replaced by a newer connection")
    assert nodes.remote.release.call_count == 1


@pytest.mark.parametrize("kind", ["monitor", "client"])
def test_a_connection_replaced_before_it_was_registered_is_refused(kind: Any) -> None:
    nodes = SharedIds()
    grant = nodes.prepare(kind)
    nodes.broadcaster.intake.receive(1, encode(PeerReplaced(kind=kind, id="p", number=11)))
    nodes.claim = Claim(owner="alice", number=12, previous=11)
    newer = nodes.prepare(kind)
    nodes.log.full = True  # that the older one is replaced cannot be told now
    present = RecordingConnection()
    add = nodes.broadcaster.add_monitor if kind == "monitor" else nodes.broadcaster.add_client
    add("p", present, principal=ALICE, grant=newer)
    with pytest.raises(Replaced, match=f"a newer connection has the {kind} id 'p'"):
        add("p", RecordingConnection(), principal=ALICE, grant=grant)
    assert present.closed is None
    assert len(nodes.broadcaster.subscribers()) == 1


def test_a_grant_is_for_one_peer_only() -> None:
    nodes = SharedIds()
    grant = nodes.prepare("client")
    add_client, add_monitor = nodes.broadcaster.add_client, nodes.broadcaster.add_monitor
    for add, peer_id, principal in (
        (add_client, "q", ALICE),
        (add_client, "p", Principal(id="bob")),
        (add_monitor, "p", ALICE),
    ):
        with pytest.raises(InvalidArgument, match=f"grant: expected the one of .* '{peer_id}'"):
            add(peer_id, RecordingConnection(), principal=principal, grant=grant)
    assert nodes.broadcaster.subscribers() == []


def test_what_concerns_nobody_here_changes_nothing() -> None:
    broadcaster, _ = made(on_undelivered=lambda _: None)
    broadcaster.check_id("monitor", "m", ALICE)
    broadcaster.check_id("client", "c", ALICE)
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection)
    broadcaster.update_subscription("m", ["machines"])
    broadcaster.unsubscribe_client_from_job("c", "a")
    broadcaster.remove_monitor("m", RecordingConnection())
    broadcaster.remove_client("c", RecordingConnection())
    broadcaster.accept_job("accepted", ALICE)
    broadcaster.broadcast(completed())
    assert (types(connection), connection.closed) == (["connected"], None)
    assert broadcaster.stats().outcomes_waiting == 1
    client = RecordingConnection()
    broadcaster.add_client("c", client)
    broadcaster.subscribe_client_to_job("c", "b")
    broadcaster.broadcast(JobFailed(job_id="b", error="e"))
    broadcaster.broadcast(JobFailed(job_id="b", error="again"))
    assert broadcaster.stats().outcomes_waiting == 1
    alice = RecordingConnection()
    broadcaster.add_monitor("a", alice, principal=ALICE)
    broadcaster.intake.replay(9, encode(PrincipalRevoked(principal_id="alice", timestamp=1)))
    assert alice.closed == (4401, "credential revoked")
