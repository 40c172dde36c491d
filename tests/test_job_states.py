from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.client_format import client_frame
from jobqueue_broadcast.commands import JobInfo
from jobqueue_broadcast.events import (
    TERMINAL_STATUSES,
    UNSET,
    JobAssigned,
    JobCompleted,
    JobData,
    JobEvent,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    JobSubmitted,
)
from jobqueue_broadcast.job_states import JobStates
from jobqueue_broadcast.testing import ManualClock
from tests.strategies import events_of


class Custom(JobEvent, frozen=True, kw_only=True, tag="custom_of_test_job_states"):
    """A host's own."""


def states(clock: ManualClock | None = None, **limits: Any) -> JobStates:
    bounds = {"retention": 600.0, "ended_limit": 100, "open_limit": 100, "forgotten_limit": 100}
    return JobStates(clock or ManualClock(), **(bounds | limits))


def submitted(job_id: str = "a", timestamp: int = 1) -> JobSubmitted:
    data = JobData(id=job_id, job_type="comfyui", created_at=7)
    return JobSubmitted(job_id=job_id, job_data=data, timestamp=timestamp)


def progress(job_id: str = "a", value: float = 0.5, timestamp: int = 2) -> JobProgress:
    return JobProgress(job_id=job_id, worker_id="w", progress=value, timestamp=timestamp)


def completed(job_id: str = "a", timestamp: int = 3) -> JobCompleted:
    return JobCompleted(
        job_id=job_id, worker_id="w", result={"n": 1}, completed_at=9, timestamp=timestamp
    )


def failed(job_id: str = "a", timestamp: int = 3) -> JobFailed:
    return JobFailed(job_id=job_id, error="e", failed_at=9, timestamp=timestamp)


def status(new: Any, job_id: str = "a", worker: str | None = None) -> JobStatusChanged:
    return JobStatusChanged(
        job_id=job_id,
        old_status="pending",
        new_status=new,
        worker_id=worker or UNSET,
        timestamp=4,
    )


class Fold:
    """What clients of one job are told and what a late one starts from, from sections 4 and 7."""

    def __init__(self) -> None:
        self.accepted: int | None = None
        self.submissions = 0
        self.progress: JobEvent | None = None
        self.outcome: JobEvent | None = None
        self.end: JobEvent | None = None

    def take(self, event: JobEvent) -> bool:
        match event:
            case JobSubmitted():
                if self.end and self.submissions:
                    self.__init__()  # type: ignore[misc]
                self.submissions += 1
                news = self.accepted is None
                self.accepted = event.timestamp if news else self.accepted
                return news and self.end is None
            case JobStatusChanged(new_status=new):
                if self.end and new not in TERMINAL_STATUSES:
                    self.end = self.outcome = self.progress = None
                if self.outcome:
                    return False
                self.end = event if new in TERMINAL_STATUSES else None
                return True
            case JobCompleted() | JobFailed():
                if self.outcome:
                    return False
                self.outcome = self.end = event
                return True
            case JobProgress() if not self.end:
                self.progress = event
                return True
            case _:
                return not self.end

    def state(self) -> list[Any]:
        accepted = [{"type": "job_accepted", "timestamp": self.accepted, "status": "queued"}]
        last = self.end or self.progress
        return [
            *(accepted if self.accepted is not None else []),
            *([msgspec.to_builtins(client_frame(last))] if last else []),
        ]


STEPS = st.lists(
    st.one_of(
        events_of(JobSubmitted),
        events_of(JobAssigned),
        events_of(JobStatusChanged),
        events_of(JobStatusChanged),
        events_of(JobProgress),
        events_of(JobCompleted),
        events_of(JobFailed),
        st.builds(Custom, job_id=st.just("x")),
        st.integers(1, 9),  # a submit hook took it, at this time
    ),
    max_size=10,
)


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), STEPS), max_size=2))
def test_the_latch_is_a_fold_over_the_events(runs: list[tuple[str, list[JobEvent | int]]]) -> None:
    latch = states()
    folds = {"a": Fold(), "b": Fold()}
    late = 0
    for job_id, steps in runs:
        fold = folds[job_id]
        accepted = outcomes = 0
        for step in steps:
            if isinstance(step, int):
                news = fold.accepted is None
                fold.accepted = step if news else fold.accepted
                assert latch.accept(job_id, "owner", step) == (news and fold.end is None)
            else:
                event = msgspec.structs.replace(step, job_id=job_id)
                if isinstance(event, JobSubmitted) and fold.end and fold.submissions:
                    accepted = outcomes = 0
                if (
                    isinstance(event, JobStatusChanged)
                    and event.new_status not in TERMINAL_STATUSES
                ):
                    outcomes *= fold.end is None
                state, told = latch.take(event)
                assert told == fold.take(event)
                late += not told
                assert (state.ended_by is event) == (fold.end is event)
                accepted += told and isinstance(event, JobSubmitted)
                outcomes += told and isinstance(event, JobCompleted | JobFailed)
                assert accepted <= 1
                assert outcomes <= 1
            known = latch.get(job_id)
            assert known is not None
            newcomer = [msgspec.to_builtins(frame) for frame in known.latched()]
            assert [frame | {"job_id": job_id} for frame in fold.state()] == newcomer
    ended = sum(fold.end is not None for fold in folds.values())
    assert latch.ended_count == ended
    assert latch.open_count + ended == len(latch) == len(list(latch))
    assert latch.late == late


def test_what_is_known_of_a_job() -> None:
    latch = states()
    latch.take(submitted())
    state, _ = latch.take(JobAssigned(job_id="a", worker_id="w1"))
    assert state.info() == JobInfo(
        id="a", job_type="comfyui", status="assigned", worker_id="w1", created_at=7
    )
    latch.take(status("queued", worker="w2"))
    assert state.info().worker_id == "w2"
    latch.take(progress())
    assert (state.info().status, state.info().progress) == ("in_progress", 0.5)
    latch.take(completed())
    assert (state.info().result, state.info().completed_at) == ({"n": 1}, 9)
    other, _ = latch.take(failed("b"))
    assert other.info() == JobInfo(id="b", status="failed", error="e", completed_at=9)
    named, _ = latch.take(JobFailed(job_id="c", error="e", worker_id="w3"))
    assert named.info().worker_id == "w3"


def test_a_submission_after_the_end_is_not_a_new_run_when_it_is_the_first() -> None:
    latch = states()
    latch.take(completed())
    state, told = latch.take(submitted())
    assert (told, state.outcome is not None, latch.ended_count) == (False, True, 1)
    state, told = latch.take(submitted(timestamp=50))
    assert (told, state.outcome, state.accepted_at, latch.open_count) == (True, None, 50, 1)


def test_a_job_that_is_open_again_counts_as_seen_last() -> None:
    latch = states(open_limit=2)
    for job_id in ("a", "b"):
        latch.take(submitted(job_id))
    latch.take(completed("a"))
    latch.take(status("queued", "a"))
    latch.take(submitted("c"))
    assert latch.over
    assert [state.id for state in latch.expire()] == ["b"]
    assert (latch.evicted, latch.was_forgotten("b"), latch.over) == (1, True, False)


def test_an_ended_job_is_kept_for_the_retention() -> None:
    clock = ManualClock()
    latch = states(clock, retention=10)
    latch.take(completed("a"))
    clock.advance(5)
    latch.take(status("cancelled", "b"))
    latch.take(failed("a"))  # too late to count as another end
    clock.advance(4.9)
    assert latch.expire() == []
    clock.advance(0.1)
    assert [state.id for state in latch.expire()] == ["a"]
    clock.advance(1e9)
    assert [state.id for state in latch.expire()] == ["b"]
    assert (latch.expired, len(latch)) == (2, 0)


def test_too_many_ended_jobs_go_in_the_order_they_ended() -> None:
    latch = states(ended_limit=2)
    for job_id in ("a", "b", "c"):
        latch.take(submitted(job_id))
    for job_id in ("c", "a", "b"):
        latch.take(completed(job_id))
    assert latch.over
    assert [state.id for state in latch.expire()] == ["c"]


def test_forgotten_ids_are_remembered_up_to_a_limit_and_until_seen_again() -> None:
    latch = states(ended_limit=0, forgotten_limit=2)
    for job_id in ("a", "b", "c"):
        latch.take(completed(job_id))
        latch.expire()
    assert [latch.was_forgotten(job_id) for job_id in ("a", "b", "c")] == [False, True, True]
    latch.take(progress("b"))
    assert not latch.was_forgotten("b")
    assert latch.accept("c", None, 1)
    state = latch.get("c")
    assert state is not None
    assert state.owner is None
    assert not latch.was_forgotten("c")


def test_jobs_may_come_and_go_while_they_are_looked_at() -> None:
    latch = states()
    for number in range(5):
        latch.take(submitted(str(number)))
    seen = []
    for state in latch:
        seen.append(state.id)
        latch.take(completed(state.id))
        latch.take(submitted(f"new-{state.id}"))
    assert seen == ["0", "1", "2", "3", "4"]


def test_a_terminal_status_after_the_outcome_is_no_news() -> None:
    jobs = states()
    for event in (submitted(), completed()):
        assert jobs.take(event)[1]
    for new in sorted(TERMINAL_STATUSES):
        state, told = jobs.take(status(new))
        assert not told
        assert state.status == "completed"
    state, told = jobs.take(status("pending"))
    assert (told, state.status, state.outcome) == (True, "pending", None)
