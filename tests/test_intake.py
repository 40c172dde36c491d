"""What the backplane gives back, taken by `Intake`: delivered, learned, or agreed to."""

from typing import Any

import pytest

from jobqueue_broadcast.auth import ANONYMOUS, Principal
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.control import (
    JobAccepted,
    PeerReplaced,
    PrincipalRevoked,
    PrincipalUnrevoked,
)
from jobqueue_broadcast.errors import BackplaneFull
from jobqueue_broadcast.events import (
    Event,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobStatusChanged,
    SystemCounts,
    SystemStats,
    WorkerConnected,
    WorkerData,
    encode,
)
from jobqueue_broadcast.history import Record
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.doubles import LogBackplane, SharedIds
from tests.samples import completed, progress, submitted, types

ALICE = Principal(id="alice")


class Undeclared(Event, frozen=True, kw_only=True, tag="undeclared_of_test_intake"):
    """Never declared."""


def made(**options: Any) -> EventBroadcaster:
    return EventBroadcaster(clock=ManualClock(), **options)


def kept(broadcaster: EventBroadcaster) -> list[Record]:
    epoch = broadcaster.history.epoch
    chunks = broadcaster.history.after(Position(epoch, 0))
    return [record for chunk in chunks for record in chunk]


# --- events ---------------------------------------------------------------------------------------


def test_its_own_payload_is_recognised_only_while_it_is_in_flight() -> None:
    broadcaster = made()
    event = progress(timestamp=1)
    payload = encode(event)
    broadcaster.intake.publish(payload, event)
    broadcaster.intake.receive(2, payload)
    first, second = kept(broadcaster)
    assert first.event is event
    assert second.event is not event
    assert second.event == event


def test_what_cannot_be_published_is_in_flight_no_longer() -> None:
    log = LogBackplane()
    broadcaster = made(backplane=log)
    event = progress(timestamp=1)
    payload = encode(event)
    log.full = True
    with pytest.raises(BackplaneFull):
        broadcaster.intake.publish(payload, event)
    assert broadcaster.intake.events == 0
    broadcaster.intake.receive(1, payload)
    (record,) = kept(broadcaster)
    assert record.event is not event


def test_an_event_published_while_another_is_delivered_is_taken_for_itself() -> None:
    def mail(outcome: JobEvent) -> None:
        if outcome.job_id == "a":
            broadcaster.broadcast(completed("mail"))

    broadcaster = made(on_undelivered=mail, undelivered_limit=0)
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection)
    broadcaster.broadcast(completed("a"))
    broadcaster.broadcast(completed("b"))
    assert [frame["job_id"] for frame in connection.frames[1:]] == ["a", "mail", "b"]
    assert broadcaster.stats().undelivered_total == 3


def test_peers_are_sent_no_byte_of_others_making() -> None:
    broadcaster = made()
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection)
    payload = encode(progress(timestamp=1))
    broadcaster.intake.receive(1, payload.replace(b"{", b'{ "own": 1, ', 1))
    assert connection.payloads[1:] == [payload]


def test_an_outcome_waits_for_a_client_only_where_none_took_it() -> None:
    broadcaster = made(on_undelivered=lambda _: None)
    broadcaster.add_client("c", RecordingConnection())
    broadcaster.subscribe_client_to_job("c", "taken")
    for event in (
        completed("taken"),
        completed("waits"),
        JobFailed(job_id="waits", error="too late to be told"),
        completed("runs again"),
        JobStatusChanged(job_id="runs again", old_status="completed", new_status="queued"),
        SystemStats(stats=SystemCounts()),
    ):
        broadcaster.broadcast(event)
    assert broadcaster.stats().outcomes_waiting == 1
    assert (broadcaster.intake.events, broadcaster.stats().late_events_total) == (6, 1)


def test_an_outcome_of_before_waits_too_if_it_is_not_of_long_ago() -> None:
    broadcaster = made(on_undelivered=lambda _: None, undelivered_after=30)
    now = broadcaster.clock.now_ms()
    for sequence, event in enumerate(
        (
            JobCompleted(job_id="now", worker_id="w", timestamp=now),
            JobFailed(job_id="now", error="too late to be told", timestamp=now),
            JobCompleted(job_id="long ago", worker_id="w", timestamp=now - 600_000),
            progress(timestamp=now),
        ),
        1,
    ):
        broadcaster.intake.replay(sequence, encode(event))
    assert broadcaster.stats().outcomes_waiting == 1


def test_bounds_are_kept_after_delivery() -> None:
    broadcaster = made(ended_job_limit=0, open_job_limit=0)
    connection = RecordingConnection()
    broadcaster.add_client("c", connection)
    broadcaster.subscribe_client_to_job("c", "a")
    broadcaster.broadcast(completed("a"))
    assert types(connection) == ["connection_established", "complete_job"]
    broadcaster.intake.restore(submitted("b", 1))
    broadcaster.intake.agree(JobAccepted(job_id="c", owner="alice", timestamp=1))
    assert (len(broadcaster.jobs), broadcaster.clients.subscription_count) == (0, 0)


def test_every_node_delivers_what_it_reads_back_in_one_order() -> None:
    log = LogBackplane()
    nodes = [made(backplane=log) for _ in range(2)]
    monitors = [RecordingConnection() for _ in nodes]
    for node, monitor in zip(nodes, monitors, strict=True):
        node.add_monitor("m", monitor, resume="new")
    nodes[0].broadcast(progress("a"))
    nodes[1].broadcast(progress("b"))
    nodes[0].revoke("nobody")
    assert types(monitors[0]) == ["connected"]
    log.give_back()
    assert [frame["position"] for frame in monitors[0].frames] == ["log:0", "log:1", "log:2"]
    assert monitors[0].payloads == monitors[1].payloads
    assert nodes[0].is_revoked(Principal(id="nobody"))


def test_a_poisoned_payload_is_dropped_and_counted() -> None:
    broadcaster = made()
    for payload in (
        b"",
        b"\xff",
        b"[]",
        b'{"type":"job_failed"}',
        b'{"type":"$nonsense"}',
        b'{"type":"$job_accepted","job_id":1}',
        encode(Undeclared()),
        b"[" * 100_000,
    ):
        broadcaster.intake.receive(1, payload)
        broadcaster.intake.replay(1, payload)
        broadcaster.intake.recall(payload)
    assert broadcaster.stats().poisoned_total == 24
    assert broadcaster.stats().events_total == 0


def test_what_was_missed_is_learned_and_those_connected_are_told() -> None:
    broadcaster = made()
    client, monitor = RecordingConnection(), RecordingConnection()
    broadcaster.add_client("c", client)
    broadcaster.add_monitor("m", monitor)
    for job_id in ("a", "b", "c"):
        broadcaster.subscribe_client_to_job("c", job_id)
    broadcaster.intake.replay(7, encode(submitted("a", 1)))
    broadcaster.intake.replay(8, encode(progress("b", 2)))
    broadcaster.intake.replay(
        9,
        encode(
            WorkerConnected(
                worker_id="w",
                machine_id="m",
                timestamp=1,
                worker_data=WorkerData(id="w", status="idle", connected_at=1),
            )
        ),
    )
    accepted = JobAccepted(job_id="c", owner="alice", timestamp=3)
    broadcaster.intake.replay(10, encode(accepted))
    broadcaster.intake.recall(encode(accepted))
    broadcaster.intake.recall(encode(completed("a", 4)))
    broadcaster.intake.replay(11, encode(PrincipalRevoked(principal_id="bob", timestamp=1)))
    assert broadcaster.intake.unfinished() == ["b", "c"]
    assert broadcaster.history.head == 9
    broadcaster.intake.resync("trimmed")
    assert types(client) == ["connection_established", "complete_job"]
    assert types(monitor) == ["connected", "full_state_snapshot"]
    assert broadcaster.is_revoked(Principal(id="bob"))


# --- decisions ------------------------------------------------------------------------------------


def test_a_submission_subscribes_the_client_that_made_it() -> None:
    broadcaster = made()
    connection = RecordingConnection()
    broadcaster.add_client("c", connection, principal=ALICE)
    accepted = JobAccepted(job_id="a", owner="alice", timestamp=1, client_id="c")
    broadcaster.intake.receive(1, encode(accepted))
    assert types(connection) == ["connection_established", "job_accepted"]
    assert broadcaster.clients.jobs_of("c") == {"a"}


def test_a_revocation_closes_whom_it_names_here() -> None:
    broadcaster = made()
    connections = [RecordingConnection() for _ in range(3)]
    broadcaster.add_monitor("m", connections[0], principal=ALICE)
    broadcaster.add_client("c", connections[1], principal=ALICE)
    broadcaster.add_client("d", connections[2])
    broadcaster.intake.receive(1, encode(PrincipalRevoked(principal_id="alice", timestamp=1)))
    closed = [connection.closed for connection in connections]
    assert closed == [(4401, "credential revoked")] * 2 + [None]
    assert broadcaster.is_revoked(ALICE)
    broadcaster.intake.replay(2, encode(PrincipalUnrevoked(principal_id="alice", timestamp=2)))
    assert not broadcaster.is_revoked(ALICE)


def test_a_revocation_of_before_spares_a_credential_of_later() -> None:
    broadcaster = made()
    old, new = RecordingConnection(), RecordingConnection()
    broadcaster.add_monitor("old", old, principal=Principal(id="alice", issued_at=1))
    broadcaster.add_monitor("new", new, principal=Principal(id="alice", issued_at=3))
    broadcaster.intake.replay(1, encode(PrincipalRevoked(principal_id="alice", timestamp=2_000)))
    assert (old.closed, new.closed) == ((4401, "credential revoked"), None)


@pytest.mark.parametrize("kind", ["monitor", "client"])
def test_a_connection_replaced_on_another_node_is_closed(kind: Any) -> None:
    nodes = SharedIds()
    grant = nodes.prepare(kind)
    connection = RecordingConnection()
    add = nodes.broadcaster.add_monitor if kind == "monitor" else nodes.broadcaster.add_client
    add("p", connection, principal=ALICE, grant=grant)
    for sequence, number in ((1, 9), (2, 10)):
        replaced = PeerReplaced(kind=kind, id="p", number=number)
        nodes.broadcaster.intake.receive(sequence, encode(replaced))
        assert connection.closed is None
    nodes.broadcaster.intake.receive(3, encode(PeerReplaced(kind=kind, id="p", number=11)))
    assert connection.closed == (4409, "replaced by a newer connection")


def test_an_acceptance_is_told_once_and_not_after_the_submission() -> None:
    broadcaster = made()
    connection = RecordingConnection()
    broadcaster.add_client("c", connection)
    for job_id in ("a", "b"):
        broadcaster.subscribe_client_to_job("c", job_id)
    broadcaster.accept_job("a", ANONYMOUS)
    broadcaster.accept_job("a", ANONYMOUS)
    broadcaster.broadcast(submitted("a"))
    broadcaster.broadcast(submitted("b"))
    broadcaster.accept_job("b", ANONYMOUS)
    broadcaster.broadcast(SystemStats(stats=SystemCounts()))
    assert [frame.get("job_id") for frame in connection.frames] == [None, "a", "b"]


def test_a_client_that_left_and_came_back_elsewhere_is_no_longer_expected() -> None:
    nodes = SharedIds()
    grant = nodes.prepare("client")
    connection = RecordingConnection()
    nodes.broadcaster.add_client("p", connection, principal=ALICE, grant=grant)
    nodes.broadcaster.remove_client("p", connection)
    nodes.broadcaster.remove_client("p", connection)
    assert nodes.broadcaster.stats().clients_away == 1
    moved = PeerReplaced(kind="client", id="p", number=11)
    nodes.broadcaster.intake.replay(9, encode(moved))
    assert nodes.broadcaster.stats().clients_away == 0
    local = made()
    local.intake.receive(1, encode(moved))
