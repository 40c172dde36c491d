"""What a client knows of its jobs, and the queues of those who watch them.

Whatever arrives twice (after a resume, a resync, a repeated command) is recognised here: of one
run of a job there is one acceptance and one outcome.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Self, TypeAlias, TypeGuard
from weakref import WeakSet

from jobqueue_broadcast.client._items import Gap, UnknownEvent
from jobqueue_broadcast.client._lane import raised_again
from jobqueue_broadcast.client._signal import Signal
from jobqueue_broadcast.client_format import (
    ClientCompleteJob,
    ClientJobAccepted,
    ClientJobAssigned,
    ClientJobProgress,
    ClientJobStatusChanged,
)
from jobqueue_broadcast.events import TERMINAL_STATUSES

__all__ = ["Job", "JobUpdate", "JobWatch", "Jobs", "UpdateQueue", "is_outcome"]

JobUpdate: TypeAlias = (
    ClientJobAccepted
    | ClientJobAssigned
    | ClientJobStatusChanged
    | ClientJobProgress
    | ClientCompleteJob
    | UnknownEvent
    | Gap
)
"""What watching a job yields."""

Outcome: TypeAlias = ClientCompleteJob | ClientJobStatusChanged

# `completed` and `failed` only announce the outcome; after the others none has to follow.
_ENDING = TERMINAL_STATUSES - {"completed", "failed"}

_MOST_UPDATES = 1000


def is_outcome(update: JobUpdate) -> TypeGuard[Outcome]:
    """Tell whether a job ends with this: its result, or `cancelled`, `timeout`, `unworkable`."""
    return isinstance(update, ClientCompleteJob) or (
        isinstance(update, ClientJobStatusChanged) and update.status in _ENDING
    )


class UpdateQueue:
    """The updates one watcher has not read yet: of progress the newest only, bounded in all."""

    def __init__(self) -> None:
        self._updates: OrderedDict[object, JobUpdate] = OrderedDict()
        self._added = Signal()
        self._ended = False
        self.error: Exception | None = None

    def put(self, update: JobUpdate) -> None:
        """Add an update; after an outcome there are no others."""
        if self._ended:
            return
        self._ended = is_outcome(update)
        key: object = object()
        if isinstance(update, ClientJobProgress | ClientJobAccepted):
            key = type(update)
        self._updates.pop(key, None)
        self._updates[key] = update
        if len(self._updates) > _MOST_UPDATES and not self._ended:
            self._shed()
        self._added.notify()

    def fail(self, error: Exception) -> None:
        """Raise this once everything is read."""
        self.error = error
        self._added.notify()

    async def get(self) -> JobUpdate:
        """Return the oldest update, once there is one, or raise what the queue failed with."""
        while not self._updates:
            if self.error is not None:
                raise raised_again(self.error)
            await self._added.wait()
        return self._updates.popitem(last=False)[1]

    def _shed(self) -> None:
        """Let go of the changes nobody read, and say so."""
        kept = ClientJobAccepted | ClientJobProgress
        self._updates = OrderedDict(
            [(key, value) for key, value in self._updates.items() if isinstance(value, kept)]
        )
        self._updates[Gap] = Gap(reason="slow")


class JobWatch:
    """What `ClientPeer.watch` returns: an asynchronous iterator of a job's updates, for one use.

    Args:
        follow: Subscribes to the job, and gives the queue its updates.
    """

    def __init__(self, follow: Callable[[UpdateQueue], Awaitable[None]]) -> None:
        self._follow = follow
        self._queue = UpdateQueue()
        self._begun = False
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JobUpdate:
        if self._ended:
            raise StopAsyncIteration
        if not self._begun:
            self._begun = True
            await self._follow(self._queue)
        update = await self._queue.get()
        self._ended = is_outcome(update)
        return update

    async def outcome(self) -> Outcome:
        """Wait for what the job ends with, and return it."""
        while not is_outcome(update := await anext(self)):
            pass
        return update


class Job:
    """What is known of one job, as of the frames that came.

    Attributes:
        wanted: Whether this side subscribed to it or submitted it, so that it is named again on
            every connection; other jobs are those the host subscribed this client to.
        accepted: The acceptance of the present run.
        progress: The newest progress of the present run.
        outcome: What the present run ended with.
        queues: Of those who watch.
    """

    __slots__ = ("accepted", "id", "outcome", "progress", "queues", "wanted")

    def __init__(self, job_id: str) -> None:
        self.id = job_id
        self.wanted = False
        self.accepted: ClientJobAccepted | None = None
        self.progress: ClientJobProgress | None = None
        self.outcome: Outcome | None = None
        # Weak: a watch that its caller left half-way goes without having to say so.
        self.queues: WeakSet[UpdateQueue] = WeakSet()

    def watch(self, queue: UpdateQueue) -> None:
        """Give a newcomer what is known, and then every update."""
        for update in (self.accepted, self.progress, self.outcome):
            if update is not None:
                queue.put(update)
        self.queues.add(queue)

    def take(self, update: JobUpdate) -> None:
        """Take in an update, and show it unless it was shown."""
        if not self._is_news(update):
            return
        if isinstance(update, ClientJobAccepted):
            self.accepted = update
        elif isinstance(update, ClientJobProgress):
            self.progress = update
        elif is_outcome(update):
            self.outcome = update
        for queue in list(self.queues):
            queue.put(update)

    def fail(self, error: Exception) -> None:
        """Tell everyone who watches that nothing more will come."""
        for queue in list(self.queues):
            queue.fail(error)

    def _is_news(self, update: JobUpdate) -> bool:
        if isinstance(update, Gap):
            return self.outcome is None
        if self._begins_run(update):
            self.accepted = self.progress = self.outcome = None
        if isinstance(update, ClientJobAccepted):
            return self.accepted is None
        if isinstance(update, ClientJobProgress) and update == self.progress:
            return False
        if isinstance(update, ClientCompleteJob) and self._ended_by_status():
            return True
        return self.outcome is None

    def _begins_run(self, update: JobUpdate) -> bool:
        """Tell whether the job, which has ended, was opened again."""
        if self.outcome is None:
            return False
        if isinstance(update, ClientJobAccepted):
            # The one of the run that ended has the timestamp that is known.
            return self.accepted is not None and update.timestamp != self.accepted.timestamp
        return isinstance(update, ClientJobStatusChanged) and update.status not in TERMINAL_STATUSES

    def _ended_by_status(self) -> bool:
        return isinstance(self.outcome, ClientJobStatusChanged)


class Jobs:
    """All jobs of a client.

    Args:
        kept: How many that have ended, or were not asked for, are kept; the oldest go first,
            unless they are watched.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._jobs: dict[str, Job] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self.let_go = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, job_id: str) -> Job | None:
        """Return what is known of a job."""
        return self._jobs.get(job_id)

    def get_or_add(self, job_id: str) -> Job:
        """Return a job, made when missing."""
        job = self._jobs.get(job_id)
        if job is None:
            job = self._jobs[job_id] = Job(job_id)
        return job

    def live(self) -> list[str]:
        """Return the jobs to be told of: wanted, and not ended."""
        return [job.id for job in self._jobs.values() if job.wanted and job.outcome is None]

    def take(self, job_id: str, update: JobUpdate) -> Job:
        """Take in an update of a job."""
        job = self.get_or_add(job_id)
        job.take(update)
        self._file(job)
        return job

    def tell_gap(self, gap: Gap) -> None:
        """Tell everyone who watches a job that has not ended."""
        for job in self._jobs.values():
            job.take(gap)

    def remove(self, job_id: str, error: Exception) -> None:
        """Forget a job, and tell those who watch it why."""
        self._idle.pop(job_id, None)
        job = self._jobs.pop(job_id, None)
        if job is not None:
            job.fail(error)

    def fail(self, error: Exception) -> None:
        """Tell everyone who watches that nothing more will come."""
        for job in self._jobs.values():
            job.fail(error)

    def _file(self, job: Job) -> None:
        if job.wanted and job.outcome is None:
            self._idle.pop(job.id, None)
            return
        self._idle[job.id] = None
        while len(self._idle) > self._kept:
            oldest = self._idle.popitem(last=False)[0]
            if self._jobs[oldest].queues:
                self._idle[oldest] = None
                return
            del self._jobs[oldest]
            self.let_go += 1
