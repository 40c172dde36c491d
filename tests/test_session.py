from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.auth import ANONYMOUS, Action, Principal
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.commands import SubmitJob
from jobqueue_broadcast.errors import HookRefusal
from jobqueue_broadcast.events import (
    JobCompleted,
    JobData,
    JobFailed,
    JobProgress,
    JobSubmitted,
)
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.session import Ask, Hooks, Session, SessionLimits
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.doubles import HandLoop, SlowConnection

NOW = 1_642_700_000_000
ALICE, BOB = Principal(id="alice"), Principal(id="bob")


def settle(ask: Ask | None) -> None:
    """Do as an adapter does."""
    while ask is not None:
        try:
            result = ask.call()
        except Exception as error:  # noqa: BLE001 - as an adapter does
            ask = ask.failed(error)
        else:
            ask = ask.answered(result)


class Bench:
    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock()
        self.broadcaster = EventBroadcaster(clock=self.clock, **options)
        self.hooks: dict[str, Any] = {}
        self.limits = SessionLimits()
        self.errors: Counter[str] = Counter()

    def session(self, subscriber: Any) -> Session:
        hooks = Hooks(**self.hooks)
        return Session(self.broadcaster, subscriber, hooks, self.limits, self.errors)

    def monitor(self) -> "Talk":
        connection = RecordingConnection()
        return Talk(self.session(self.broadcaster.add_monitor("m", connection)), connection)

    def client(
        self, principal: Principal = ANONYMOUS, name: str = "c", resume: Any = None
    ) -> "Talk":
        connection = RecordingConnection()
        added = self.broadcaster.add_client(name, connection, principal=principal, resume=resume)
        return Talk(self.session(added), connection)

    def submit(self, job_id: str = "a") -> None:
        data = JobData(id=job_id, job_type="x", created_at=1)
        self.broadcaster.broadcast(JobSubmitted(job_id=job_id, job_data=data))

    def complete(self, job_id: str = "a") -> None:
        self.broadcaster.broadcast(JobCompleted(job_id=job_id, worker_id="w", result=1))


class Talk:
    """A session and its connection."""

    def __init__(self, session: Session, connection: RecordingConnection) -> None:
        self.session = session
        self.connection = connection
        connection.take()

    def ask(self, **command: Any) -> Ask | None:
        return self.session.receive(msgspec.json.encode(command).decode())

    def say(self, **command: Any) -> list[dict[str, Any]]:
        settle(self.ask(**command))
        return self.connection.take()


def error(code: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "error", "timestamp": NOW, "error": text, "code": code} | fields


# --- monitors -------------------------------------------------------------------------------------


def test_a_monitor_replaces_its_topics_and_filters() -> None:
    bench = Bench()
    talk = bench.monitor()
    filters = {"job_types": ["x"], "worker_ids": ["w"], "priority_range": [0, 5]}
    assert talk.say(type="subscribe", topics=["system_stats", "jobs"], filters=filters) == [
        {
            "type": "subscribed",
            "timestamp": NOW,
            "monitor_id": "m",
            "topics": ["jobs", "system_stats"],
        }
    ]
    bench.broadcaster.broadcast(JobProgress(job_id="a", worker_id="w2", progress=0.5))
    assert talk.connection.take() == []
    assert talk.say(type="subscribe", topics=["jobs"], filters={})[0]["topics"] == ["jobs"]
    bench.broadcaster.broadcast(JobProgress(job_id="a", worker_id="w2", progress=0.5))
    assert len(talk.connection.take()) == 1


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ({"topics": ["nonsense"]}, "invalid_field", "topics: expected known topics"),
        (
            {"topics": ["jobs"], "filters": {"priority_range": [5, 1]}},
            "invalid_field",
            "priority_range: expected [min, max] with min <= max",
        ),
    ],
)
def test_a_subscription_that_makes_no_sense_is_answered_so(
    command: dict[str, Any], code: str, says: str
) -> None:
    talk = Bench().monitor()
    assert talk.say(type="subscribe", message_id="1", **command) == [
        error(code, says, message_id="1")
    ]


def test_a_monitor_asks_for_the_full_state_a_page_and_a_sign_of_life() -> None:
    bench = Bench()
    bench.submit()
    talk = bench.monitor()
    assert talk.say(type="request_full_state")[0]["data"] == bench.broadcaster.full_state()
    page = talk.say(type="resync_request", since_timestamp=0)[0]
    assert [event["type"] for event in page["events"]] == ["job_submitted"]
    assert page["oldest_available_timestamp"] == NOW
    for most in (1, 10**6):
        assert talk.say(type="resync_request", since_timestamp=0, max_events=most) == [page]
    assert talk.say(type="heartbeat", monitor_id="m") == [
        {"type": "heartbeat_ack", "timestamp": NOW, "monitor_id": "m", "server_timestamp": NOW}
    ]


def test_what_a_monitor_asks_while_it_catches_up_is_answered_after_it_in_order() -> None:
    bench, loop = Bench(), HandLoop()
    for _ in range(300):
        bench.submit()
    bench.broadcaster.bind(loop.call_soon, loop.call_soon)
    slow = SlowConnection()
    epoch = bench.broadcaster.history.epoch
    added = bench.broadcaster.add_monitor("m", slow, resume=Position(epoch, 0))
    slow.attach(added)
    loop.run()
    session = bench.session(added)
    for command in ("request_full_state", "nonsense", "heartbeat"):
        session.receive(f'{{"type":"{command}"}}')
    session.receive('{"type":"subscribe","topics":["machines"]}')
    bench.submit("late")
    for _ in range(3):
        slow.read()
        loop.run()
    answers = slow.frames[302:]
    assert [frame["type"] for frame in answers] == [
        "full_state_snapshot",
        "error",
        "heartbeat_ack",
        "subscribed",
    ]
    pending = answers[0]["data"]["jobs"]["pending"]
    assert [job["id"] for job in pending] == ["a", "late"]


# --- what every connection is held to -------------------------------------------------------------


def test_frames_that_are_not_understood_are_answered_and_binary_ones_end_it() -> None:
    talk = Bench().client()
    settle(talk.session.receive("{"))
    settle(talk.session.receive('{"type":"subscribe_progress"}'))
    assert [frame["code"] for frame in talk.connection.take()] == ["bad_json", "invalid_field"]
    settle(talk.session.receive(b"{}"))
    assert talk.connection.closed == (1003, "expected text frames")
    assert talk.session.receive("{") is None
    assert talk.connection.take() == []


def test_too_many_commands_are_refused_and_in_the_end_closed() -> None:
    bench = Bench()
    bench.limits = SessionLimits(command_rate=1, command_burst=3)
    talk = bench.monitor()
    for _ in range(3):
        assert talk.say(type="heartbeat")[0]["type"] == "heartbeat_ack"
    for _ in range(3):
        assert talk.say(type="heartbeat")[0]["code"] == "rate_limited"
    bench.clock.advance(1)
    assert talk.say(type="heartbeat")[0]["type"] == "heartbeat_ack"
    for _ in range(4):
        talk.say(type="heartbeat")
    assert talk.connection.closed == (4429, "too many commands")


def test_errors_are_counted_by_code() -> None:
    bench = Bench()
    bench.limits = SessionLimits(subscriptions_per_client=0, command_burst=4)
    client, monitor = bench.client(), bench.monitor()
    for talk, text in (
        (client, '{"type":"subscribe_progress","job_id":"a"}'),
        (client, "{"),
        (client, '{"type":"get_job_status","job_id":"a"}'),
        (client, '{"type":"cancel_job","job_id":"a"}'),
        (client, '{"type":"unsubscribe_progress","job_id":"a"}'),
        (monitor, '{"type":"subscribe","topics":["none"]}'),
    ):
        settle(talk.session.receive(text))
    assert bench.errors == {
        "forbidden": 1, "bad_json": 1, "not_found": 1, "unsupported": 1, "rate_limited": 1,
        "invalid_field": 1,
    }  # fmt: skip
    alone = Session(bench.broadcaster, client.session.subscriber, Hooks(), bench.limits)
    settle(alone.receive("{"))
    assert bench.errors["bad_json"] == 1


@given(st.text(max_size=40) | st.binary(max_size=20).map(lambda raw: raw.decode("latin-1")))
def test_no_frame_raises_and_no_answer_is_large(text: str) -> None:
    bench = Bench()
    for talk in (bench.monitor(), bench.client()):
        settle(talk.session.receive(text))
        for payload in talk.connection.payloads:
            assert len(payload) <= 1024


# --- clients --------------------------------------------------------------------------------------


def test_a_client_subscribes_asks_and_unsubscribes() -> None:
    bench = Bench()
    bench.submit()
    talk = bench.client()
    assert talk.say(type="subscribe_progress", job_id="a", message_id="1") == [
        {"type": "subscribed", "timestamp": NOW, "job_id": "a", "message_id": "1"},
        {"type": "job_accepted", "timestamp": NOW, "job_id": "a", "status": "queued"},
    ]
    assert talk.say(type="get_job_status", job_id="a", message_id="2") == [
        {
            "type": "job_status",
            "timestamp": NOW,
            "job_id": "a",
            "message_id": "2",
            "job": {"id": "a", "job_type": "x", "status": "pending", "created_at": 1},
        }
    ]
    assert talk.say(type="unsubscribe_progress", job_id="a", message_id="3") == [
        {"type": "unsubscribed", "timestamp": NOW, "job_id": "a", "message_id": "3"}
    ]
    bench.complete()
    assert talk.connection.take() == []
    assert talk.say(type="get_job_status", job_id="b") == [
        error("not_found", "no such job, or it is not yours")
    ]


def test_the_jobs_of_the_handshake_are_subscribed_one_after_the_other() -> None:
    bench = Bench()
    allowed: list[str] = []

    def authorize(_: Principal, action: Action, job_id: str) -> bool:
        allowed.append(f"{action} {job_id}")
        return job_id != "no"

    talk = bench.client()
    assert talk.session.open(["a", "b"]) is None
    bench.hooks["authorize"] = authorize
    talk = bench.client(ALICE, "d")
    settle(talk.session.open(["a", "no", "b"]))
    assert allowed == ["subscribe a", "subscribe no", "subscribe b"]
    assert [frame["type"] for frame in talk.connection.take()] == [
        "subscribed",
        "error",
        "subscribed",
    ]
    assert talk.session.open([]) is None


def test_a_job_that_was_let_go_of_is_not_found() -> None:
    bench = Bench(job_retention=1)
    bench.complete()
    bench.clock.advance(1)
    bench.broadcaster.tick()
    answer = bench.client().say(type="subscribe_progress", job_id="a")
    assert [frame["code"] for frame in answer] == ["not_found"]


def test_a_client_has_room_for_so_many_subscriptions() -> None:
    bench = Bench()
    bench.limits = SessionLimits(subscriptions_per_client=1)
    bench.hooks["submit"] = lambda *_: "never"
    talk = bench.client()
    assert talk.say(type="subscribe_progress", job_id="a")[0]["type"] == "subscribed"
    for command in (
        {"type": "subscribe_progress", "job_id": "b"},
        {"type": "submit_job", "job_type": "x"},
    ):
        assert talk.say(**command)[0]["code"] == "forbidden"


def test_someone_elses_job_and_no_job_get_the_same_answer() -> None:
    bench = Bench()
    bench.broadcaster.accept_job("hers", ALICE)
    bench.hooks["cancel"] = lambda *_: None
    bob = bench.client(BOB)
    commands = ("subscribe_progress", "get_job_status", "cancel_job")
    answers = [bob.say(type=kind, job_id=job) for kind in commands for job in ("hers", "none")]
    assert answers == [[error("not_found", "no such job, or it is not yours")]] * 6
    bench.hooks["authorize"] = lambda *_: "yes"  # not `True`
    bob = bench.client(BOB, "d")
    assert [bob.say(type=kind, job_id="hers") for kind in commands] == answers[:3]
    alice = bench.client(ALICE, "e")
    kinds = [alice.say(type=kind, job_id="hers")[0]["type"] for kind in commands]
    assert kinds == ["subscribed", "job_status", "job_cancelled"]


def test_a_job_is_cancelled_by_the_host() -> None:
    bench = Bench()
    talk = bench.client()
    command = {"type": "cancel_job", "job_id": "a", "message_id": "1"}
    assert talk.say(**command)[0]["code"] == "unsupported"
    cancelled: list[tuple[str, Principal]] = []
    bench.hooks["cancel"] = lambda *arguments: cancelled.append(arguments)
    talk = bench.client()
    assert talk.say(**command) == [
        {"type": "job_cancelled", "timestamp": NOW, "job_id": "a", "message_id": "1"}
    ]
    assert cancelled == [("a", ANONYMOUS)]


def raising(error: Exception) -> Callable[..., Any]:
    def hook(*_: Any) -> Any:
        raise error

    return hook


def test_a_hook_may_refuse_and_its_faults_do_not_leave_the_server() -> None:
    bench = Bench()
    bench.hooks = {
        "submit": raising(HookRefusal("no more today", "forbidden")),
        "cancel": raising(ValueError("secret")),
        "authorize": raising(KeyError("secret")),
    }
    talk = bench.client()
    assert talk.say(type="submit_job", job_type="x", message_id="1") == [
        error("forbidden", "no more today", message_id="1")
    ]
    internal = [error("internal", "the server could not do this")]
    assert talk.say(type="submit_job", job_type="x", message_id="1")[0]["code"] == "forbidden"
    # As if there were no such job: an `authorize` that fails for some jobs must not tell which.
    assert talk.say(type="get_job_status", job_id="a")[0]["code"] == "not_found"
    bench.hooks["authorize"] = lambda *_: True
    assert bench.client(ALICE, "d").say(type="cancel_job", job_id="a") == internal


@pytest.mark.parametrize("words", ["é" * 2000, "\x00" * 2000, "👩‍🚀" * 500, "plain " * 500])
def test_an_answer_never_exceeds_its_limit_whatever_the_host_says(words: str) -> None:
    bench = Bench()
    bench.hooks["submit"] = raising(HookRefusal(words))
    talk = bench.client()
    settle(talk.ask(type="submit_job", job_type="x", message_id="\x01" * 128))
    assert 800 < len(talk.connection.payloads[0]) <= 1024


def test_a_hook_that_ends_after_its_client_left_is_not_answered() -> None:
    bench = Bench()
    bench.hooks = {"authorize": lambda *_: True, "cancel": lambda *_: None}
    talk = bench.client(ALICE)
    asks = [talk.ask(type=kind, job_id="a") for kind in ("get_job_status", "cancel_job")]
    bench.broadcaster.remove_client("c", talk.connection)
    for ask in asks:
        settle(ask)
    assert talk.connection.take() == []


# --- submitting -----------------------------------------------------------------------------------


def test_without_a_hook_no_jobs_are_taken() -> None:
    answer = Bench().client().say(type="submit_job", job_type="x", message_id="1")
    assert answer == [error("unsupported", "this server takes no jobs", message_id="1")]


@pytest.mark.parametrize("job_id", [None, 7, "", "x" * 129, "\ud800"])
def test_what_is_no_job_id_is_the_hosts_fault(job_id: Any) -> None:
    bench = Bench()
    bench.hooks["submit"] = lambda *_: job_id
    for fields in ({}, {"message_id": "1"}):
        answer = bench.client().say(type="submit_job", job_type="x", **fields)
        assert answer == [error("internal", "the server could not do this", **fields)]
    assert bench.broadcaster.stats().jobs_open == 0


def test_the_hook_is_given_the_command_and_the_principal() -> None:
    bench = Bench()
    taken: list[tuple[SubmitJob, Principal]] = []

    def submit(command: SubmitJob, principal: Principal) -> str:
        taken.append((command, principal))
        return "a"

    bench.hooks["submit"] = submit
    answer = bench.client(ALICE).say(type="submit_job", job_type="x", payload={"n": 1})
    assert [frame["type"] for frame in answer] == ["job_accepted"]
    assert (taken[0][0].payload, taken[0][1]) == ({"n": 1}, ALICE)


def test_a_submission_repeated_after_a_reconnection_is_not_a_second_job() -> None:
    bench = Bench(job_retention=1)
    jobs = iter(["a", "b"])
    bench.hooks["submit"] = lambda *_: next(jobs)
    command = {"type": "submit_job", "job_type": "x", "message_id": "1"}
    first = bench.client()
    ask = first.ask(**command)
    again = bench.client()
    assert again.say(**command) == []  # the hook still runs
    settle(ask)
    accepted = {"type": "job_accepted", "timestamp": NOW, "job_id": "a", "status": "queued"}
    assert again.connection.take() == [accepted]
    assert again.say(**command) == [accepted]
    bench.complete()
    again.connection.take()
    bench.clock.advance(1)
    bench.broadcaster.tick()
    assert [frame["code"] for frame in again.say(**command)] == ["not_found"]


def test_a_job_taken_for_a_client_whose_id_is_anothers_by_now_is_not_shown_to_it() -> None:
    bench = Bench(client_retention=1)
    bench.hooks["submit"] = lambda *_: "a"
    alice = bench.client(ALICE)
    ask = alice.ask(type="submit_job", job_type="x")
    bench.broadcaster.remove_client("c", alice.connection)
    bench.clock.advance(1)
    bench.broadcaster.tick()
    bob = bench.client(BOB)
    settle(ask)
    bench.complete()
    assert bob.connection.take() == []
    state = bench.broadcaster.jobs.get("a")
    assert state is not None
    assert state.owner == "alice"


WHEN = ("before", "inside", "after", "never")


def submit_and_end(bench: Bench, talk: Talk, job_id: str, submitted: str, ended: str) -> None:
    """Submit a job whose host broadcasts its submission and outcome when told."""

    def broadcast(now: str) -> None:
        if submitted == now:
            bench.submit(job_id)
        if ended == now:
            bench.complete(job_id)

    def submit(*_: Any) -> str:
        broadcast("inside")
        return job_id

    broadcast("before")
    bench.hooks["submit"] = submit
    session = bench.session(talk.session.subscriber)
    settle(session.receive('{"type":"submit_job","job_type":"x"}'))
    broadcast("after")


@pytest.mark.parametrize("ended", WHEN)
@pytest.mark.parametrize("submitted", WHEN)
def test_the_submitter_sees_accepted_and_then_the_outcome_once_each(
    submitted: str, ended: str
) -> None:
    bench = Bench()
    talk = bench.client()
    submit_and_end(bench, talk, "a", submitted, ended)
    expected = ["job_accepted"] if ended == "never" else ["job_accepted", "complete_job"]
    assert [frame["type"] for frame in talk.connection.take()] == expected


def run_races(jobs: int) -> None:
    """R4: jobs that end before their submitter's subscription exists, in every combination."""
    bench = Bench(
        ended_job_limit=1000, open_job_limit=1000, history_limit=100, forgotten_job_limit=1000
    )
    talk = bench.client()
    seen: Counter[str] = Counter()
    times = [when for when in WHEN if when != "never"]
    for number in range(jobs):
        job_id = f"job-{number}"
        submit_and_end(bench, talk, job_id, WHEN[number % 4], times[number // 4 % 3])
        frames = talk.connection.take()
        assert [(frame["type"], frame["job_id"]) for frame in frames] == [
            ("job_accepted", job_id),
            ("complete_job", job_id),
        ]
        seen.update(frame["type"] for frame in frames)
        if number % 100 == 99:
            bench.broadcaster.broadcast(JobFailed(job_id="other", error="e"))
    print(f"{jobs:,} jobs raced with their subscription: {dict(seen)}, 0 lost, 0 twice")
    assert seen == {"job_accepted": jobs, "complete_job": jobs}


def test_a_job_that_ends_before_its_submitters_subscription_is_never_lost() -> None:
    run_races(5_000)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_job_that_ends_before_its_submitters_subscription_is_never_lost_soak() -> None:
    run_races(100_000)


def test_a_cancellation_that_ends_after_its_client_left_is_not_answered() -> None:
    bench = Bench()
    bench.hooks["cancel"] = lambda *_: None
    talk = bench.client()
    ask = talk.ask(type="cancel_job", job_id="a")
    bench.broadcaster.remove_client("c", talk.connection)
    settle(ask)
    assert talk.connection.take() == []


def test_a_job_unknown_here_is_looked_up_first() -> None:
    bench = Bench()
    data = JobData(id="a", job_type="x", created_at=1)
    kept = [msgspec.json.encode(JobSubmitted(job_id="a", job_data=data, timestamp=1))]
    with patch.object(bench.broadcaster, "look_up", lambda _: lambda: kept):
        talk = bench.client()
        answer = talk.say(type="get_job_status", job_id="a")
        assert answer[0]["job"]["job_type"] == "x"
        gone = talk.ask(type="get_job_status", job_id="a")
        bench.broadcaster.remove_client("c", talk.connection)
        settle(gone)
        assert talk.connection.take() == []
    with patch.object(bench.broadcaster, "look_up", lambda _: raising(OSError("secret"))):
        assert bench.client().say(type="get_job_status", job_id="b")[0]["code"] == "internal"


def test_a_repeated_submission_hears_of_a_hook_that_fails_after_the_reconnection() -> None:
    bench = Bench()
    bench.hooks["submit"] = raising(HookRefusal("no more today"))
    command = {"type": "submit_job", "job_type": "x", "message_id": "1"}
    first = bench.client()
    running = first.ask(**command)
    bench.broadcaster.remove_client("c", first.connection)
    second = bench.client()
    assert second.say(**command) == []  # answered by the hook that still runs
    settle(running)
    assert second.connection.take() == [error("forbidden", "no more today", message_id="1")]
    assert first.connection.take() == []


def test_a_hook_that_outlives_its_connection_answers_nobody_else() -> None:
    bench = Bench(client_retention=0.0)
    bench.hooks["submit"] = raising(HookRefusal("no more today"))
    first = bench.client(ALICE)
    running = first.ask(type="submit_job", job_type="x", message_id="1")
    bench.broadcaster.remove_client("c", first.connection)
    bench.clock.advance(1)
    bench.broadcaster.tick()
    other = bench.client(BOB)
    settle(running)
    assert other.connection.take() == []


def test_submitting_a_job_that_is_followed_already_is_answered_with_its_id() -> None:
    bench = Bench()
    bench.hooks["submit"] = lambda *_: "a"
    talk = bench.client()
    first = talk.say(type="submit_job", job_type="x", message_id="1")
    assert [frame["type"] for frame in first] == ["job_accepted"]
    assert talk.say(type="submit_job", job_type="x", message_id="2") == [
        {"type": "subscribed", "timestamp": NOW, "job_id": "a", "message_id": "2"}
    ]
