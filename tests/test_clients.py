import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import msgspec
import pytest

from jobqueue_broadcast import delivery
from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.backplane import InProcessBackplane
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.commands import JobSubscribed
from jobqueue_broadcast.errors import IdTaken
from jobqueue_broadcast.event_types import declare_event
from jobqueue_broadcast.events import (
    JobAssigned,
    JobCompleted,
    JobData,
    JobEvent,
    JobFailed,
    JobProgress,
    JobSubmitted,
    SystemCounts,
    SystemStats,
    encode,
)
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.doubles import HandLoop, LogBackplane, SlowConnection

ALICE, BOB = Principal(id="alice"), Principal(id="bob")


@declare_event(topics=["jobs"])
class ClientsNote(JobEvent, frozen=True, kw_only=True, tag="clients_note"):
    """A host's own event that clients are not told of."""


class ClientsStepFrame(msgspec.Struct, tag_field="type", tag="clients_step"):
    job_id: str
    step: Any


def clients_step_frame(event: "ClientsStep") -> ClientsStepFrame:
    """Fail in each way a host's format can."""
    if event.step == "raises":
        raise LookupError("no such step")
    if event.step == "is no struct":
        return None  # type: ignore[return-value]
    step = object() if event.step == "is no JSON" else event.step
    return ClientsStepFrame(event.job_id, step)


@declare_event(topics=["jobs"], client_format=clients_step_frame)
class ClientsStep(JobEvent, frozen=True, kw_only=True, tag="clients_step"):
    """A host's own event that clients are told of, if its format can be made."""

    step: str


class Bench:
    """A broadcaster with a client, `c`, and an event loop by hand."""

    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock()
        self.undelivered: list[JobEvent] = []
        self.broadcaster = EventBroadcaster(
            clock=self.clock,
            on_undelivered=self.undelivered.append,
            undelivered_after=5,
            **options,
        )
        self.clients = self.broadcaster.clients
        self.loop = HandLoop()
        self.timestamp = 0

    def at(self, sequence: int, state: int = 0) -> Position:
        return Position(self.broadcaster.history.epoch, sequence, state)

    def send(self, kind: Callable[..., JobEvent], job_id: str = "a", **fields: Any) -> None:
        self.timestamp += 1
        self.broadcaster.broadcast(kind(job_id=job_id, timestamp=self.timestamp, **fields))

    def submit(self, job_id: str = "a") -> None:
        self.send(JobSubmitted, job_id, job_data=JobData(id=job_id, job_type="x", created_at=1))

    def progress(self, job_id: str = "a", progress: float = 0.5) -> None:
        self.send(JobProgress, job_id, worker_id="w", progress=progress)

    def complete(self, job_id: str = "a") -> None:
        self.send(JobCompleted, job_id, worker_id="w", result=1)

    def connect(self, resume: Any = None, principal: Principal = ALICE) -> RecordingConnection:
        connection = RecordingConnection()
        self.broadcaster.add_client("c", connection, principal=principal, resume=resume)
        return connection

    def connect_slowly(self, resume: Any) -> SlowConnection:
        """Connect so that catching up stops at the first frame."""
        self.broadcaster.bind(self.loop.call_soon, self.loop.call_soon)
        slow = SlowConnection()
        slow.attach(self.broadcaster.add_client("c", slow, principal=ALICE, resume=resume))
        self.loop.run()
        return slow

    def read(self, slow: SlowConnection) -> list[str]:
        slow.read()
        self.loop.run()
        slow.read()
        return brief(slow)

    def subscribe(self, job_id: str = "a") -> None:
        self.broadcaster.subscribe_client_to_job("c", job_id)

    def ask(self, job_id: str = "a", timestamp: int = 0) -> None:
        reply = JobSubscribed(timestamp=timestamp, job_id=job_id)
        self.clients.subscribe("c", job_id, [reply])
        self.broadcaster.delivery.settle()


def brief(connection: Any) -> list[str]:
    """The frames received, each as `type job position`."""
    return [
        " ".join(
            filter(
                None,
                [
                    frame["type"],
                    frame.get("job_id"),
                    frame.get("position", "").partition(":")[2],
                ],
            )
        )
        for frame in connection.frames
    ]


HELLO = "connection_established"


def test_a_client_receives_the_events_of_its_jobs_and_no_others() -> None:
    bench = Bench()
    connection = bench.connect()
    bench.subscribe("a")
    for job_id in ("a", "b"):
        bench.submit(job_id)
        bench.progress(job_id)
    bench.send(ClientsNote, "a")
    bench.broadcaster.broadcast(SystemStats(stats=SystemCounts()))
    bench.broadcaster.unsubscribe_client_from_job("c", "a")
    bench.broadcaster.unsubscribe_client_from_job("nobody", "a")
    bench.progress("a")
    assert brief(connection) == [HELLO, "job_accepted a", "update_job_progress a"]
    assert bench.clients.jobs_of("c") == frozenset()
    assert bench.clients.jobs_of("nobody") == frozenset()


def test_a_frame_is_encoded_once_for_all_and_not_at_all_for_nobody() -> None:
    bench = Bench()
    bench.submit()
    assert bench.clients.encodings == 0
    connections = [RecordingConnection() for _ in range(4)]
    for number, connection in enumerate(connections):
        bench.broadcaster.add_client(f"c{number}", connection, resume="new" if number % 2 else None)
        bench.broadcaster.subscribe_client_to_job(f"c{number}", "a")
    bench.progress()
    assert bench.clients.encodings == 1
    assert [len(connection.payloads) for connection in connections] == [3, 3, 3, 3]
    assert len(list(bench.clients)) == len(bench.clients) == 4


def test_whoever_subscribes_starts_from_the_state_once() -> None:
    bench = Bench()
    connection = bench.connect("new")
    bench.submit()
    bench.progress()
    bench.progress()
    bench.ask()
    bench.ask()
    bench.progress()
    bench.complete()
    bench.subscribe("b")
    assert brief(connection) == [
        f"{HELLO} 0",
        "subscribed a",
        "job_accepted a 3",
        "update_job_progress a 3.1",
        "subscribed a",
        "update_job_progress a 4",
        "complete_job a 5",
    ]


def test_subscriptions_may_be_made_ahead_and_outlive_the_connection_for_a_while() -> None:
    bench = Bench(client_retention=10)
    bench.subscribe()
    bench.submit()
    connection = bench.connect()
    assert brief(connection) == [HELLO, "job_accepted a"]
    bench.broadcaster.remove_client("c", connection)
    assert (bench.clients.get("c"), bench.clients.away_count) == (None, 1)
    bench.clock.advance(9)
    bench.broadcaster.tick()
    bench.progress()
    connection = bench.connect()
    assert brief(connection) == [HELLO, "job_accepted a", "update_job_progress a"]
    bench.broadcaster.remove_client("c", connection)
    bench.clock.advance(10)
    bench.broadcaster.tick()
    assert (bench.clients.away_count, bench.clients.subscription_count) == (0, 0)


def test_a_newer_connection_replaces_and_a_late_close_does_not_evict_it() -> None:
    bench = Bench()
    old = bench.connect()
    bench.subscribe()
    new = bench.connect()
    assert old.closed == (4409, "replaced by a newer connection")
    bench.broadcaster.remove_client("c", old)
    bench.submit()
    assert (brief(old), brief(new)) == ([HELLO], [HELLO, "job_accepted a"])


def test_one_that_is_behind_is_replaced_without_its_backlog() -> None:
    bench = Bench()
    slow = bench.connect_slowly("new")
    bench.subscribe()
    bench.submit()
    bench.complete()
    bench.loop.run()
    new = bench.connect(bench.at(0))
    bench.loop.run()
    slow.read()
    assert brief(slow) == [f"{HELLO} 0"]
    assert brief(new) == [f"{HELLO} 0", "job_accepted a 1", "complete_job a 2"]


def test_an_id_belongs_to_its_principal_as_long_as_it_is_expected_back() -> None:
    bench = Bench(client_retention=10)
    connection = bench.connect()
    with pytest.raises(IdTaken):
        bench.connect(principal=BOB)
    bench.broadcaster.remove_client("c", connection)
    with pytest.raises(IdTaken):
        bench.broadcaster.check_id("client", "c", BOB)
    bench.clock.advance(10)
    bench.broadcaster.tick()
    bench.connect(principal=BOB)


# --- resuming -------------------------------------------------------------------------------------


def test_a_client_resumes_with_the_events_of_its_jobs() -> None:
    bench = Bench()
    connection = bench.connect("new")
    bench.subscribe()
    bench.submit()
    bench.submit("other")
    bench.broadcaster.remove_client("c", connection)
    bench.progress()
    bench.send(ClientsNote)
    bench.complete()
    bench.complete()
    connection = bench.connect(bench.at(1))
    assert brief(connection) == [f"{HELLO} 1", "update_job_progress a 3", "complete_job a 5"]
    bench.clock.advance(10)
    bench.broadcaster.tick()
    assert bench.undelivered == []


def test_a_state_that_did_not_arrive_whole_is_sent_again_and_one_that_did_is_not() -> None:
    bench = Bench()
    bench.submit()
    bench.progress()
    bench.connect("new")
    bench.subscribe()
    bench.progress()
    assert brief(bench.connect(bench.at(2))) == [
        f"{HELLO} 2",
        "job_accepted a 3.1",
        "update_job_progress a 3.2",
    ]
    bench.progress()
    assert brief(bench.connect(bench.at(3, 2))) == [f"{HELLO} 3.2", "update_job_progress a 4"]


def test_a_subscription_to_an_unknown_job_owes_no_state_but_all_its_events() -> None:
    bench = Bench()
    bench.submit("warm")
    connection = bench.connect("new")
    bench.subscribe("warm")
    bench.submit("other")
    bench.subscribe()
    bench.broadcaster.remove_client("c", connection)
    bench.submit()
    bench.send(JobAssigned, worker_id="w")
    bench.progress()
    assert brief(bench.connect(bench.at(1, 1))) == [
        f"{HELLO} 1.1",
        "job_accepted a 3",
        "job_assigned a 4",
        "update_job_progress a 5",
    ]


@pytest.mark.parametrize("forgotten", [False, True])
def test_where_it_cannot_continue_it_is_told_and_given_the_states(forgotten: bool) -> None:
    bench = Bench(history_limit=2)
    connection = bench.connect("new")
    bench.subscribe()
    bench.submit()
    bench.progress()
    bench.progress()
    if forgotten:
        bench.broadcaster.remove_client("c", connection)
        bench.clock.advance(1e6)
        bench.broadcaster.tick()
        # By the host, ahead of its return: it does not make it a client that is known.
        bench.subscribe()
    position = bench.at(3 if forgotten else 0)
    frames = brief(bench.connect(position))
    # The state was sent to nobody, but numbered, when the host subscribed it.
    before, after = ("3.1", "3.2") if forgotten else ("3", "3.1")
    assert frames[1:] == [
        "resync_required 3",
        f"job_accepted a {before}",
        f"update_job_progress a {after}",
    ]


def test_states_lost_after_a_resync_are_still_owed() -> None:
    bench = Bench()
    bench.connect("new")
    bench.submit()
    bench.subscribe()
    slow = bench.connect_slowly(Position("another", 7))
    with patch.object(delivery, "_PIECE", 1):
        slow.read(1)
        bench.loop.run()
    slow.buffer.clear()
    again = bench.connect(bench.at(1))
    bench.loop.run()
    assert [frame.split()[:2] for frame in brief(again)[1:]] == [["job_accepted", "a"]]


def test_an_acceptance_is_owed_to_who_was_away() -> None:
    bench = Bench()
    connection = bench.connect("new")
    bench.subscribe()
    bench.broadcaster.remove_client("c", connection)
    bench.broadcaster.accept_job("a", ALICE)
    bench.submit()
    bench.progress()
    assert brief(bench.connect(bench.at(0))) == [
        f"{HELLO} 0",
        "job_accepted a 3",
        "update_job_progress a 3.1",
    ]


def test_an_acceptance_lost_with_the_connection_is_owed_too() -> None:
    bench = Bench()
    connection = bench.connect("new")
    bench.subscribe()
    bench.broadcaster.accept_job("a", ALICE)
    assert brief(connection) == [f"{HELLO} 0", "job_accepted a 0.1"]
    assert brief(bench.connect(bench.at(0))) == [f"{HELLO} 0", "job_accepted a 0.2"]
    assert brief(bench.connect(bench.at(0, 2))) == [f"{HELLO} 0.2"]
    plain = bench.connect()
    bench.subscribe("b")
    bench.broadcaster.accept_job("b", ALICE)
    assert brief(plain) == [HELLO, "job_accepted a", "job_accepted b"]


# --- while catching up ----------------------------------------------------------------------------


def behind(**options: Any) -> tuple[Bench, SlowConnection]:
    """A client of job `a` that resumes and has read nothing yet; job `b` is known, too."""
    bench = Bench(**options)
    bench.connect("new")
    bench.subscribe()
    bench.submit()
    bench.submit("b")
    bench.progress()
    return bench, bench.connect_slowly(bench.at(0))


def test_a_subscription_made_while_catching_up_begins_after_the_past() -> None:
    bench, slow = behind()
    bench.ask("b")
    bench.progress("b", 0.1)
    bench.progress("b", 0.2)
    bench.subscribe("a")
    assert bench.read(slow) == [
        f"{HELLO} 0",
        "job_accepted a 1",
        "update_job_progress a 3",
        "subscribed b",
        "job_accepted b 5.1",
        "update_job_progress b 5.2",
    ]


def test_what_the_host_subscribes_while_catching_up_begins_after_the_past_too() -> None:
    bench, slow = behind()
    bench.subscribe("b")
    bench.ask("b")
    bench.progress("b")
    assert bench.read(slow)[3:] == [
        "job_accepted b 4.1",
        "update_job_progress b 4.2",
        "subscribed b",
    ]


@pytest.mark.parametrize("by_host", [False, True])
def test_a_subscription_made_while_catching_up_survives_the_connection(by_host: bool) -> None:
    bench, slow = behind()
    if by_host:
        bench.subscribe("b")
    else:
        bench.ask("b")
    slow.buffer.clear()
    bench.progress("b")
    again = bench.connect(bench.at(3))
    bench.loop.run()
    assert [frame.split()[:2] for frame in brief(again)[1:]] == [
        ["job_accepted", "b"],
        ["update_job_progress", "b"],
    ]


def test_an_end_to_a_subscription_while_catching_up_holds_at_once() -> None:
    bench, slow = behind()
    bench.ask("b")
    bench.broadcaster.unsubscribe_client_from_job("c", "a")
    bench.broadcaster.unsubscribe_client_from_job("c", "b")
    bench.ask("b", 1)
    bench.broadcaster.unsubscribe_client_from_job("c", "b")
    bench.ask("b", 2)
    frames = bench.read(slow)
    assert frames[0] == f"{HELLO} 0"
    assert "update_job_progress a 3" not in frames
    assert [frame for frame in frames if frame.endswith("b") or " b " in frame] == [
        "subscribed b",
        "subscribed b",
        "subscribed b",
        next(frame for frame in frames if frame.startswith("job_accepted b")),
    ]


def test_an_acceptance_while_catching_up_comes_before_what_follows_it() -> None:
    bench, slow = behind()
    bench.subscribe("new")
    bench.broadcaster.accept_job("new", ALICE)
    bench.complete("new")
    frames = [frame.split()[:2] for frame in bench.read(slow)[3:]]
    assert frames == [["job_accepted", "new"], ["complete_job", "new"]]


def test_a_state_asked_for_again_while_catching_up_comes_after_the_past() -> None:
    bench, slow = behind()
    bench.clients.tell_state("c", "a")
    bench.complete()
    assert [frame.split()[0] for frame in bench.read(slow)] == [
        HELLO,
        "job_accepted",
        "complete_job",
    ]


def test_a_state_asked_for_again_is_sent_again() -> None:
    bench = Bench()
    bench.submit()
    bench.clients.tell_state("c", "a")
    connection = bench.connect()
    bench.clients.tell_state("c", "a")
    bench.broadcaster.flush()
    assert brief(connection) == [HELLO, "job_accepted a"]
    bench.broadcaster.remove_client("c", connection)
    bench.clients.tell_state("c", "a")


# --- submitting -----------------------------------------------------------------------------------


def test_a_submission_is_subscribed_for_its_owner_alone() -> None:
    bench = Bench(client_retention=10)
    connection = bench.connect()
    bench.broadcaster.accept_job("mine", ALICE, "c")
    bench.broadcaster.accept_job("stolen", BOB, "c")
    assert brief(connection) == [HELLO, "job_accepted mine"]
    assert bench.clients.jobs_of("c") == {"mine"}


def test_a_submission_answered_after_its_client_was_let_go_of_waits_for_it() -> None:
    bench = Bench(client_retention=10)
    bench.broadcaster.accept_job("a", ALICE, "c")
    with pytest.raises(IdTaken):
        bench.connect(principal=BOB)
    bench.complete()
    assert brief(bench.connect()) == [HELLO, "job_accepted a", "complete_job a"]


def test_recent_submissions_are_remembered_up_to_a_limit() -> None:
    bench = Bench()
    bench.connect()
    for number in range(200):
        bench.clients.submissions("c")[str(number)] = "a"
    kept = bench.clients.submissions("c")
    assert (len(kept), "199" in kept, "0" in kept) == (64, True, False)


# --- outcomes -------------------------------------------------------------------------------------


def test_who_keeps_up_with_a_job() -> None:
    bench = Bench()
    assert not bench.clients.keep_up_with("a")
    connection = bench.connect()
    bench.subscribe()
    assert bench.clients.keep_up_with("a")
    subscriber = bench.clients.get("c")
    assert subscriber is not None
    subscriber.pause()
    assert not bench.clients.keep_up_with("a")
    bench.broadcaster.remove_client("c", connection)
    assert not bench.clients.keep_up_with("a")


def test_an_outcome_that_nobody_took_is_reported_and_one_taken_later_is_not() -> None:
    bench = Bench()
    bench.send(JobFailed, "a", error="e")
    bench.send(JobFailed, "b", error="e")
    bench.connect()
    bench.subscribe("a")
    bench.clock.advance(5)
    bench.broadcaster.tick()
    assert [event.job_id for event in bench.undelivered] == ["b"]


def test_events_missed_on_this_node_are_made_good() -> None:
    bench = Bench()
    plain = bench.connect()
    opted, slow = RecordingConnection(), SlowConnection()
    bench.broadcaster.add_client("opted", opted, resume="new")
    for client in ("c", "opted"):
        for job_id in ("a", "b", "unknown"):
            bench.broadcaster.subscribe_client_to_job(client, job_id)
    bench.submit("a")
    bench.complete("a")
    bench.complete("b")
    bench.broadcaster.bind(bench.loop.call_soon, bench.loop.call_soon)
    slow.attach(bench.broadcaster.add_client("slow", slow, resume=bench.at(0)))
    plain.take()
    opted.take()
    bench.clients.resync("trimmed", {"a", "unknown"})
    bench.loop.run()
    assert brief(plain) == ["complete_job a"]
    assert brief(opted) == [
        "resync_required 3",
        "job_accepted a 3",
        "complete_job a 3",
        "complete_job b 3.1",
    ]


def test_the_end_of_a_job_ends_its_subscriptions() -> None:
    bench = Bench(job_retention=10)
    bench.connect()
    bench.subscribe()
    bench.complete()
    bench.clock.advance(10)
    bench.broadcaster.tick()
    assert (bench.clients.jobs_of("c"), bench.clients.subscription_count) == (frozenset(), 0)


# --- other nodes ----------------------------------------------------------------------------------


def test_a_client_from_another_node_resumes_as_if_it_had_been_here() -> None:
    bench = Bench()
    changes: list[tuple[str, str, tuple[int, int] | None]] = []
    bench.clients.share_with(lambda *change: changes.append(change))
    bench.submit("a")
    bench.submit("b")
    bench.progress("a")
    for resume, expected in (
        (bench.at(2, 3), ["update_job_progress a 3", "job_accepted b 3.9"]),
        ("new", ["job_accepted a 3.9", "update_job_progress a 3.9", "job_accepted b 3.10"]),
    ):
        bench.clients.adopt("c", ALICE, {"a": (1, 1), "b": (2, 8)}, resume)  # type: ignore[arg-type]
        assert changes == []
        connection = bench.connect(resume)
        assert brief(connection)[1:] == expected
        assert changes[-1] == ("c", "b", (3, 9 if resume != "new" else 10))
        bench.clients.let_go("c")
        assert bench.clients.get("c") is not None
        bench.broadcaster.remove_client("c", connection)
        changes.clear()
    bench.clients.let_go("c")
    bench.clients.let_go("c")
    assert (bench.clients.away_count, bench.clients.subscription_count) == (0, 0)


def test_a_state_still_owed_is_owed_on_every_node() -> None:
    bench = Bench()
    shared: dict[str, tuple[int, int] | None] = {}
    bench.clients.share_with(lambda _, job_id, since: shared.__setitem__(job_id, since))
    bench.connect("new")
    bench.submit()
    bench.subscribe()
    slow = bench.connect_slowly(Position("another", 7))
    assert brief(slow) == []
    since = shared["a"]
    assert since is not None
    slow.buffer.clear()
    other = Bench(backplane=InProcessBackplane(bench.broadcaster.history.epoch))
    other.submit()
    other.clients.adopt("c", ALICE, {"a": since}, other.at(1))
    assert [frame.split()[0] for frame in brief(other.connect(other.at(1)))[1:]] == ["job_accepted"]


def test_who_is_removed_twice_does_not_evict_its_successor() -> None:
    bench = Bench()
    bench.connect()
    old = bench.clients.get("c")
    assert old is not None
    bench.connect()
    bench.clients.remove(old)
    assert bench.clients.get("c") is not None
    bench.broadcaster.delivery.close(bench.clients.get("c"), 1001, "bye")  # type: ignore[arg-type]
    bench.clients.let_go("c")
    bench.clients.remove(old)
    assert len(bench.clients) == bench.clients.away_count == 0


@pytest.mark.parametrize("step", ["raises", "is no struct", "is no JSON"])
def test_what_cannot_be_told_of_another_nodes_event_stops_nobody(
    step: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = LogBackplane()
    bench = Bench(backplane=log)
    monitor, plain = RecordingConnection(), RecordingConnection()
    bench.broadcaster.add_monitor("m", monitor)
    bench.broadcaster.add_client("plain", plain)
    bench.broadcaster.subscribe_client_to_job("plain", "a")
    opted = bench.connect("new")
    bench.subscribe()
    bench.submit()
    log.publish(encode(ClientsStep(job_id="a", step="good", timestamp=2)))
    # The node it comes from has another format, which can be made of it.
    log.publish(encode(ClientsStep(job_id="a", step=step, timestamp=3)))
    bench.progress()
    told = ["job_accepted a", "clients_step a", "update_job_progress a"]
    positions = [1, 2, 4]
    with caplog.at_level(logging.ERROR, "jobqueue_broadcast"):
        log.give_back()
        # Once for all clients, not once for each.
        assert caplog.messages == ["clients are not told of ClientsStep"]
        assert brief(plain) == [HELLO, *told]
        at_once = [f"{frame} {at}" for frame, at in zip(told, positions, strict=True)]
        assert brief(opted) == [f"{HELLO} 0", *at_once]
        # It is in the history, and whoever resumes is sent what comes after it all the same.
        assert brief(bench.connect(bench.at(0))) == brief(opted)
        assert len(caplog.messages) == 2
    assert all(record.exc_info for record in caplog.records)
    assert [frame["type"] for frame in monitor.frames[1:]] == [
        "job_submitted",
        "clients_step",
        "clients_step",
        "update_job_progress",
    ]
    assert (opted.closed, plain.closed) == ((4409, "replaced by a newer connection"), None)
