"""Which outcomes no client has taken yet, so that the host can send them by another way."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from jobqueue_broadcast.events import JobEvent

__all__ = ["OnUndelivered", "UndeliveredOutcomes"]

logger = logging.getLogger("jobqueue_broadcast")

OnUndelivered = Callable[[JobEvent], object]
"""A host's hook for an outcome that no client took in time. Must return at once; may not wait."""


def _nobody(_: JobEvent) -> None:
    """Stand in for a hook that was not given."""


class UndeliveredOutcomes:
    """Outcomes waiting for a client to take them.

    Args:
        hook: Called, once per outcome, when its time is over.
        after: Seconds an outcome may wait.
        limit: How many may wait; past it the oldest is given to the hook early.
    """

    def __init__(self, hook: OnUndelivered | None, after: float, limit: int) -> None:
        self._hook: OnUndelivered = hook or _nobody
        self._wanted = hook is not None
        self._after = after
        self._limit = limit
        self._waiting: OrderedDict[str, tuple[float, JobEvent]] = OrderedDict()
        self.reported = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, outcome: JobEvent, now: float) -> None:
        """Wait for a client to take an outcome. Does nothing without a hook."""
        if not self._wanted:
            return
        self._waiting[outcome.job_id] = (now + self._after, outcome)
        self._waiting.move_to_end(outcome.job_id)
        if len(self._waiting) > self._limit:
            self._report(self._waiting.popitem(last=False)[1][1])

    def taken(self, job_id: str) -> None:
        """Note that a client took the outcome of a job, or that the job runs again."""
        self._waiting.pop(job_id, None)

    def expire(self, now: float, was_taken: Callable[[str], bool]) -> None:
        """Report the outcomes whose time is over and which `was_taken` still denies."""
        while self._waiting:
            job_id, (due, outcome) = next(iter(self._waiting.items()))
            if due > now:
                return
            del self._waiting[job_id]
            if not was_taken(job_id):
                self._report(outcome)

    def _report(self, outcome: JobEvent) -> None:
        self.reported += 1
        try:
            self._hook(outcome)
        except Exception:
            logger.exception("on_undelivered failed for job %s", outcome.job_id)
