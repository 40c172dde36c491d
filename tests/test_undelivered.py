import logging

import pytest

from jobqueue_broadcast.events import JobEvent, JobFailed
from jobqueue_broadcast.undelivered import UndeliveredOutcomes


def outcome(job_id: str) -> JobFailed:
    return JobFailed(job_id=job_id, error="e", timestamp=1)


def never(_: str) -> bool:
    return False


def test_an_outcome_nobody_takes_is_reported_once_when_its_time_is_over() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    waiting.add(outcome("job-1"), now=0)
    waiting.add(outcome("job-2"), now=5)
    waiting.expire(29.9, never)
    assert (reported, len(waiting), waiting.reported) == ([], 2, 0)
    waiting.expire(30, never)
    assert (reported, len(waiting), waiting.reported) == ([outcome("job-1")], 1, 1)
    waiting.expire(100, never)
    waiting.expire(100, never)
    assert reported == [outcome("job-1"), outcome("job-2")]
    assert (len(waiting), waiting.reported) == (0, 2)


def test_an_outcome_that_was_taken_is_not_reported() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    waiting.add(outcome("job-1"), now=0)
    waiting.taken("job-1")
    waiting.taken("job-9")
    assert len(waiting) == 0
    waiting.expire(100, never)
    assert reported == []


def test_a_client_that_took_it_meanwhile_is_asked_for_at_the_end() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    waiting.add(outcome("job-1"), now=0)
    waiting.add(outcome("job-2"), now=0)
    waiting.expire(30, lambda job_id: job_id == "job-1")
    assert reported == [outcome("job-2")]
    assert (len(waiting), waiting.reported) == (0, 1)


def test_a_second_outcome_of_a_job_takes_the_place_and_time_of_the_first() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    again = JobFailed(job_id="job-1", error="again", timestamp=2)
    waiting.add(outcome("job-1"), now=0)
    waiting.add(outcome("job-2"), now=1)
    waiting.add(again, now=2)
    waiting.expire(31.5, never)
    assert reported == [outcome("job-2")]
    waiting.expire(32, never)
    assert reported == [outcome("job-2"), again]


def test_past_the_limit_the_oldest_is_reported_early() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=2)
    for number in range(4):
        waiting.add(outcome(f"job-{number}"), now=0)
    assert reported == [outcome("job-0"), outcome("job-1")]
    assert (len(waiting), waiting.reported) == (2, 2)


def test_without_a_hook_nothing_waits() -> None:
    waiting = UndeliveredOutcomes(None, after=30, limit=2)
    waiting.add(outcome("job-1"), now=0)
    waiting.expire(100, never)
    assert (len(waiting), waiting.reported) == (0, 0)


def test_a_hook_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def hook(event: JobEvent) -> None:
        calls.append(event.job_id)
        raise ZeroDivisionError

    waiting = UndeliveredOutcomes(hook, after=0, limit=10)
    waiting.add(outcome("job-1"), now=0)
    waiting.add(outcome("job-2"), now=0)
    with caplog.at_level(logging.ERROR, "jobqueue_broadcast"):
        waiting.expire(0, never)
    assert calls == ["job-1", "job-2"]
    assert [record.getMessage() for record in caplog.records] == [
        "on_undelivered failed for job job-1",
        "on_undelivered failed for job job-2",
    ]


def test_a_hook_may_bring_about_another_outcome() -> None:
    reported: list[str] = []

    def hook(event: JobEvent) -> None:
        reported.append(event.job_id)
        if event.job_id == "job-1":
            waiting.add(outcome("job-2"), now=30)

    waiting = UndeliveredOutcomes(hook, after=30, limit=10)
    waiting.add(outcome("job-1"), now=0)
    waiting.expire(30, never)
    assert (reported, len(waiting)) == (["job-1"], 1)
    waiting.expire(60, never)
    assert reported == ["job-1", "job-2"]
