from collections import Counter
from typing import Any

import pytest

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.commands import SubmitJob
from jobqueue_broadcast.errors import HookRefusal
from jobqueue_broadcast.events import JobFailed
from tests.conversation import ALICE, BOB, NOW, Bench, Talk, error, raising, settle


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


def test_a_submission_that_was_refused_may_be_repeated() -> None:
    bench = Bench()
    command = {"type": "submit_job", "job_type": "x", "message_id": "1"}
    bench.hooks["submit"] = raising(HookRefusal("no more today", "forbidden"))
    refusing = bench.client()
    for _ in range(2):
        assert refusing.say(**command) == [error("forbidden", "no more today", message_id="1")]
    bench.hooks["submit"] = lambda *_: "a"
    assert [frame["type"] for frame in bench.client().say(**command)] == ["job_accepted"]


def test_submitting_a_job_that_is_followed_already_is_answered_with_its_id() -> None:
    bench = Bench()
    bench.hooks["submit"] = lambda *_: "a"
    talk = bench.client()
    first = talk.say(type="submit_job", job_type="x", message_id="1")
    assert [frame["type"] for frame in first] == ["job_accepted"]
    assert talk.say(type="submit_job", job_type="x", message_id="2") == [
        {"type": "subscribed", "timestamp": NOW, "job_id": "a", "message_id": "2"}
    ]


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
