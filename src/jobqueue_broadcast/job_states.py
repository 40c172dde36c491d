"""What a newcomer must know of each job: the latch (wire protocol, section 7).

A fold over the job events. It also says of each event whether clients are to be told: a job has
one acceptance and one outcome, and after its outcome clients hear no more of it until it is opened
again (section 4).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from jobqueue_broadcast.client_format import ClientJobAccepted, client_frame
from jobqueue_broadcast.clock import Clock
from jobqueue_broadcast.commands import JobInfo
from jobqueue_broadcast.events import (
    TERMINAL_STATUSES,
    JobAssigned,
    JobCompleted,
    JobData,
    JobEvent,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    JobSubmitted,
)
from jobqueue_broadcast.predicates import JobFacts

__all__ = ["JobState", "JobStates"]


class JobState:
    """What is known of one job.

    Attributes:
        owner: The principal that submitted it over a client connection, if one did.
        data: Its description, once its `JobSubmitted` was seen.
        facts: What filters ask about it.
        status: Its last status.
        accepted_at: The timestamp of its acceptance, in Unix ms.
        submitted: Whether its `JobSubmitted` was seen in this run.
        worker_id: The worker that has or had it.
        progress: The newest progress of this run.
        outcome: `JobCompleted` or `JobFailed` of this run.
        ended_by: The event that made it terminal: its outcome, or a terminal status.
        ended_at: When that was, by the steady clock.
    """

    __slots__ = (
        "accepted_at",
        "data",
        "ended_at",
        "ended_by",
        "facts",
        "id",
        "outcome",
        "owner",
        "progress",
        "status",
        "submitted",
        "worker_id",
    )

    def __init__(self, job_id: str) -> None:
        self.id = job_id
        self.owner: str | None = None
        self.data: JobData | None = None
        self.facts: JobFacts | None = None
        self.worker_id: str | None = None
        self.open()

    def open(self) -> None:
        """Begin a run: the first one, or another after an end."""
        self.status = "pending"
        self.accepted_at: int | None = None
        self.submitted = False
        self.progress: JobProgress | None = None
        self.outcome: JobEvent | None = None
        self.ended_by: JobEvent | None = None
        self.ended_at = 0.0

    def latched(self) -> list[Struct]:
        """Return the client frames of the state a newcomer starts from."""
        frames: list[Struct] = []
        if self.accepted_at is not None:
            frames.append(ClientJobAccepted(timestamp=self.accepted_at, job_id=self.id))
        if self.ended_by is not None:
            frames.append(client_frame(self.ended_by))
        elif self.progress is not None:
            frames.append(client_frame(self.progress))
        return frames

    def info(self) -> JobInfo:
        """Return the answer to `get_job_status`."""
        outcome = self.outcome
        return JobInfo(
            id=self.id,
            job_type=self.facts.job_type if self.facts else UNSET,
            status=self.status,
            progress=self.progress.progress if self.progress else UNSET,
            worker_id=self.worker_id or UNSET,
            result=outcome.result if isinstance(outcome, JobCompleted) else UNSET,
            error=outcome.error if isinstance(outcome, JobFailed) else UNSET,
            created_at=self.data.created_at if self.data else UNSET,
            completed_at=_completed_at(outcome),
        )

    # One method per event type, each saying whether clients are told.

    def take_submitted(self, event: JobSubmitted) -> bool:
        """Take the job's description, and its acceptance."""
        # A host may broadcast the submission only after its submit hook, even after the job is
        # done; only a second one, after an end, is a new run.
        if self.ended_by is not None and self.submitted:
            self.open()
        self.submitted = True
        self.data = event.job_data
        self.facts = JobFacts.of(event.job_data)
        return self.accept(event.timestamp)

    def accept(self, timestamp: int) -> bool:
        """Note the acceptance; return whether it is news to clients."""
        if self.accepted_at is not None:
            return False
        self.accepted_at = timestamp
        return self.ended_by is None

    def take_assigned(self, event: JobAssigned) -> bool:
        """Take the worker it was given to."""
        if self.ended_by is not None:
            return False
        self.status = event.new_status
        self.worker_id = event.worker_id
        return True

    def take_status(self, event: JobStatusChanged) -> bool:
        """Take a status; one that is not terminal opens an ended job again."""
        terminal = event.new_status in TERMINAL_STATUSES
        if self.ended_by is not None and not terminal:
            accepted_at, submitted = self.accepted_at, self.submitted
            self.open()
            self.accepted_at, self.submitted = accepted_at, submitted
        if self.outcome is not None:
            return False
        self.status = event.new_status
        if event.worker_id is not UNSET:
            self.worker_id = event.worker_id
        if terminal:
            self.ended_by = event
        return True

    def take_progress(self, event: JobProgress) -> bool:
        """Take how far it is."""
        if self.ended_by is not None:
            return False
        self.status = "in_progress"
        self.worker_id = event.worker_id
        self.progress = event
        return True

    def take_outcome(self, event: JobCompleted | JobFailed) -> bool:
        """Take its outcome, the first of this run."""
        if self.outcome is not None:
            return False
        self.outcome = self.ended_by = event
        self.status = "completed" if isinstance(event, JobCompleted) else "failed"
        if event.worker_id is not UNSET:
            self.worker_id = event.worker_id
        return True

    def take_other(self, event: JobEvent) -> bool:
        """Take an event of the host's own, which changes nothing."""
        return self.ended_by is None


def _completed_at(outcome: JobEvent | None) -> int | UnsetType:
    if isinstance(outcome, JobCompleted):
        return outcome.completed_at
    if isinstance(outcome, JobFailed):
        return outcome.failed_at
    return UNSET


class JobStates:
    """The states of all jobs that are running, or ended not long ago.

    Args:
        clock: Tells when a job ended.
        retention: Seconds an ended job is kept.
        ended_limit: How many ended jobs are kept at most; the one that ended first goes first.
        open_limit: How many jobs that have not ended are kept; the one seen first goes first.
        forgotten_limit: How many ids of jobs that went are remembered, so that whoever asks for
            one is told `not_found` instead of waiting for ever.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        retention: float,
        ended_limit: int,
        open_limit: int,
        forgotten_limit: int,
    ) -> None:
        self._clock = clock
        self.retention = retention
        self.ended_limit = ended_limit
        self.open_limit = open_limit
        self.forgotten_limit = forgotten_limit
        self._open: OrderedDict[str, JobState] = OrderedDict()
        self._ended: OrderedDict[str, JobState] = OrderedDict()
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self.late = 0
        """Job events that clients were not told of, because the job had ended or it was known."""
        self.expired = 0
        self.evicted = 0
        self.over = False
        """Whether a count is passed, so that `expire` should not wait for the next tick."""

    def __len__(self) -> int:
        return len(self._open) + len(self._ended)

    def __iter__(self) -> Iterator[JobState]:
        # A copy: whoever looks at jobs one by one may broadcast in between.
        return iter([*self._open.values(), *self._ended.values()])

    def get(self, job_id: str) -> JobState | None:
        """Return what is known of a job."""
        return self._open.get(job_id) or self._ended.get(job_id)

    def was_forgotten(self, job_id: str) -> bool:
        """Tell whether the job was known, and was let go of."""
        return job_id in self._forgotten

    @property
    def open_count(self) -> int:
        """How many jobs have not ended."""
        return len(self._open)

    @property
    def ended_count(self) -> int:
        """How many ended jobs are kept."""
        return len(self._ended)

    def take(self, event: JobEvent) -> tuple[JobState, bool]:
        """Fold an event in; return its job's state and whether clients are to be told."""
        # Most events are of an open job, and two calls are a fifth of what this takes.
        state = self._open.get(event.job_id) or self._state_of(event.job_id)
        was_open = state.ended_by is None
        told = _taker(type(event))(state, event)
        if not told:
            self.late += 1
        if was_open != (state.ended_by is None):
            self._file(state)
        return state, told

    def accept(self, job_id: str, owner: str | None, timestamp: int) -> bool:
        """Note that a submit hook took the job; return whether that is news to its clients."""
        state = self._state_of(job_id)
        if owner is not None:
            state.owner = owner
        return state.accept(timestamp)

    def expire(self) -> list[JobState]:
        """Let go of what is over its bounds; return it."""
        gone: list[JobState] = []
        before = self._clock.monotonic() - self.retention
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if oldest.ended_at > before and len(self._ended) <= self.ended_limit:
                break
            del self._ended[oldest.id]
            self.expired += 1
            gone.append(oldest)
        while len(self._open) > self.open_limit:
            self.evicted += 1
            gone.append(self._open.popitem(last=False)[1])
        for state in gone:
            self._forgotten[state.id] = None
        while len(self._forgotten) > self.forgotten_limit:
            self._forgotten.popitem(last=False)
        self.over = False
        return gone

    def _state_of(self, job_id: str) -> JobState:
        state = self.get(job_id)
        if state is None:
            state = self._open[job_id] = JobState(job_id)
            self._forgotten.pop(job_id, None)
            self._count()
        return state

    def _file(self, state: JobState) -> None:
        """Keep the state of a job that ended, or is open again, among its like."""
        if state.ended_by is None:
            self._open[state.id] = self._ended.pop(state.id)
        else:
            state.ended_at = self._clock.monotonic()
            self._ended[state.id] = self._open.pop(state.id)
        self._count()

    def _count(self) -> None:
        self.over = len(self._ended) > self.ended_limit or len(self._open) > self.open_limit


_TAKERS: tuple[tuple[type[JobEvent], Callable[[JobState, Any], bool]], ...] = (
    (JobProgress, JobState.take_progress),
    (JobCompleted, JobState.take_outcome),
    (JobFailed, JobState.take_outcome),
    (JobAssigned, JobState.take_assigned),
    (JobStatusChanged, JobState.take_status),
    (JobSubmitted, JobState.take_submitted),
)


@cache
def _taker(cls: type[JobEvent]) -> Callable[[JobState, Any], bool]:
    """Return what takes an event of this class; a class derived from a built-in counts as it."""
    for base, take in _TAKERS:
        if issubclass(cls, base):
            return take
    return JobState.take_other
