"""What is shown of a job: once each, the newest progress, never a second outcome."""

from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.client import Gap, UnknownEvent
from jobqueue_broadcast.client._jobs import Job, Jobs, JobUpdate, UpdateQueue, is_outcome
from jobqueue_broadcast.client_format import (
    ClientCompleteJob,
    ClientJobAccepted,
    ClientJobAssigned,
    ClientJobProgress,
    ClientJobStatusChanged,
    FailureResult,
    SuccessResult,
)
from jobqueue_broadcast.errors import CommandFailed

pytestmark = pytest.mark.anyio


def accepted(at: int = 1) -> ClientJobAccepted:
    return ClientJobAccepted(timestamp=at, job_id="j")


def assigned() -> ClientJobAssigned:
    return ClientJobAssigned(timestamp=2, job_id="j", worker_id="w")


def progress(value: float) -> ClientJobProgress:
    return ClientJobProgress(timestamp=3, job_id="j", progress=value)


def status(value: Any, at: int = 4) -> ClientJobStatusChanged:
    return ClientJobStatusChanged(timestamp=at, job_id="j", status=value)


def complete(data: Any = None, at: int = 5) -> ClientCompleteJob:
    return ClientCompleteJob(timestamp=at, job_id="j", result=SuccessResult(data=data))


def failed() -> ClientCompleteJob:
    return ClientCompleteJob(timestamp=5, job_id="j", result=FailureResult(error="e"))


def watched(job: Job) -> UpdateQueue:
    queue = UpdateQueue()
    job.watch(queue)
    return queue


def drain(queue: UpdateQueue) -> list[JobUpdate]:
    return list(queue._updates.values())


def test_a_watcher_sees_everything_in_order() -> None:
    job = Job("j")
    queue = watched(job)
    custom = UnknownEvent(type="step", timestamp=1, data={})
    for update in (accepted(), assigned(), status("in_progress"), custom, complete({"a": [1]})):
        job.take(update)
    assert drain(queue) == [
        accepted(),
        assigned(),
        status("in_progress"),
        custom,
        complete({"a": [1]}),
    ]


def test_unread_progress_is_replaced_and_comes_before_the_outcome() -> None:
    job = Job("j")
    queue = watched(job)
    for update in (progress(0.1), assigned(), progress(0.2), progress(0.3), complete()):
        job.take(update)
    assert drain(queue) == [assigned(), progress(0.3), complete()]


def test_what_is_sent_again_is_shown_once() -> None:
    job = Job("j")
    queue = watched(job)
    updates: list[JobUpdate] = [accepted(), progress(0.5), complete(1)]
    for update in updates:
        job.take(update)
        job.take(update)
    late: list[JobUpdate] = [accepted(), progress(0.5), complete(1), progress(0.9), assigned()]
    for update in late:
        job.take(update)
    assert drain(queue) == [accepted(), progress(0.5), complete(1)]


def test_another_acceptance_of_the_same_run_is_not_shown() -> None:
    """A server that started anew may have accepted the job at another time."""
    job = Job("j")
    queue = watched(job)
    job.take(accepted(1))
    job.take(accepted(2))
    assert drain(queue) == [accepted(1)]


def test_a_late_watcher_gets_the_present_state() -> None:
    job = Job("j")
    for update in (accepted(), assigned(), progress(0.1), progress(0.2)):
        job.take(update)
    assert drain(watched(job)) == [accepted(), progress(0.2)]
    job.take(failed())
    assert drain(watched(job)) == [accepted(), progress(0.2), failed()]


@pytest.mark.parametrize("again", [accepted(9), status("pending", 9)])
def test_another_run_is_shown_to_new_watchers(again: JobUpdate) -> None:
    job = Job("j")
    first = watched(job)
    job.take(accepted())
    job.take(complete(1))
    job.take(again)
    second = watched(job)
    job.take(complete(2, at=10))
    assert drain(first) == [accepted(), complete(1)]
    assert drain(second)[-1] == complete(2, at=10)
    assert job.outcome == complete(2, at=10)


@pytest.mark.parametrize("value", ["cancelled", "timeout", "unworkable"])
def test_terminal_statuses_without_a_result_are_outcomes(value: str) -> None:
    job = Job("j")
    queue = watched(job)
    job.take(status(value))
    job.take(failed())
    assert drain(queue) == [status(value)]
    assert job.outcome == failed(), "the job's own outcome says more"


@pytest.mark.parametrize("value", ["completed", "failed"])
def test_statuses_that_announce_a_result_are_not(value: str) -> None:
    assert not is_outcome(status(value))


def test_a_gap_is_told_unless_the_job_has_ended() -> None:
    job = Job("j")
    queue = watched(job)
    gap = Gap(reason="epoch")
    job.take(gap)
    job.take(complete())
    job.take(gap)
    assert drain(queue) == [gap, complete()]


def test_a_watch_that_is_never_read_is_bounded_and_says_what_it_let_go() -> None:
    job = Job("j")
    queue = watched(job)
    job.take(accepted())
    job.take(progress(0.5))
    for number in range(5000):
        job.take(status("assigned" if number % 2 else "in_progress", at=number))
    job.take(complete())
    updates = drain(queue)
    assert len(updates) < 1010
    assert updates[0] == accepted()
    assert updates[-1] == complete()
    assert Gap(reason="slow") in updates


def test_a_watch_that_was_left_goes_by_itself() -> None:
    job = Job("j")
    queue = watched(job)
    assert len(job.queues) == 1
    del queue
    assert len(job.queues) == 0


async def test_a_failed_queue_gives_what_it_has_and_then_raises() -> None:
    job = Job("j")
    queue = watched(job)
    job.take(accepted())
    job.fail(CommandFailed("not_found", "gone"))
    with anyio.fail_after(5):
        assert await queue.get() == accepted()
        for _ in range(2):
            with pytest.raises(CommandFailed):
                await queue.get()


def test_ended_and_unwanted_jobs_are_bounded_watched_ones_stay() -> None:
    jobs = Jobs(kept=3)
    watcher = UpdateQueue()
    for number in range(10):
        job = jobs.get_or_add(f"j{number}")
        job.wanted = True
        if number == 0:
            job.watch(watcher)
        jobs.take(job.id, complete())
    jobs.get_or_add("live").wanted = True
    jobs.take("live", accepted())
    assert jobs.get("j0") is not None
    assert jobs.get("live") is not None
    assert len(jobs) <= 6
    assert jobs.let_go > 0
    assert jobs.live() == ["live"]


updates = st.one_of(
    st.integers(1, 3).map(accepted),
    st.sampled_from([0.1, 0.5, 1.0]).map(progress),
    st.sampled_from(["assigned", "completed", "cancelled", "pending"]).map(status),
    st.integers(1, 3).map(complete),
    st.just(failed()),
    st.just(assigned()),
    st.just(Gap(reason="trimmed")),
)


@given(st.lists(updates, max_size=40), st.integers(0, 40))
def test_whatever_comes_a_watch_shows_one_acceptance_and_ends_with_one_outcome(
    stream: list[JobUpdate], joins_at: int
) -> None:
    job = Job("j")
    queue = UpdateQueue()
    for number, update in enumerate(stream):
        if number == joins_at:
            job.watch(queue)
        job.take(update)
    shown = drain(queue)
    outcomes = [update for update in shown if is_outcome(update)]
    assert sum(isinstance(update, ClientJobAccepted) for update in shown) <= 1
    assert sum(isinstance(update, ClientJobProgress) for update in shown) <= 1
    assert len(outcomes) <= 1
    assert not outcomes or shown[-1] is outcomes[0]
