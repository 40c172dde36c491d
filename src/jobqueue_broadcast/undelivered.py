"""Which outcomes no client has taken yet, so that the host can send them by another way.

With a backplane that other processes share, a node also says which outcomes its clients took, and
asks before it calls the hook: of all nodes one calls it, and none where a client of any took it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial

from msgspec import Struct

from jobqueue_broadcast.backplane import RemoteBackplane
from jobqueue_broadcast.events import JobEvent

__all__ = ["OnUndelivered", "UndeliveredOutcomes"]

logger = logging.getLogger("jobqueue_broadcast")

OnUndelivered = Callable[[JobEvent], object]
"""A host's hook for an outcome that no client took in time. Must return at once; may not wait."""

# Every node looks at its own clients when the time is over, and says what it finds. Before one
# asks whether the others found any, it leaves them time for that: their ticks and clocks differ.
_OTHERS_TIME = 5.0

# A node that starts says nothing of an outcome whose time was over this long before: others have,
# or it is too late. What was said of it is kept for longer.
_LATE = 300.0


class _Outcome(Struct):
    event: JobEvent
    sequence: int
    due: float


class UndeliveredOutcomes:
    """Outcomes waiting for a client to take them.

    Args:
        hook: Called, once per outcome, when its time is over.
        after: Seconds an outcome may wait.
        limit: How many may wait; past it the oldest is given to the hook early.
        remote: What all nodes share; `None`: there are no others.
    """

    def __init__(
        self,
        hook: OnUndelivered | None,
        after: float,
        limit: int,
        remote: RemoteBackplane | None = None,
    ) -> None:
        self._hook = hook
        self._after = after
        self._limit = limit
        self._remote = remote
        self._waiting: OrderedDict[str, _Outcome] = OrderedDict()
        self._over: OrderedDict[str, _Outcome] = OrderedDict()
        """Those no client of this node took, while the other nodes are given time to say so."""
        self.reported = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._over)

    def add(self, event: JobEvent, sequence: int, now: float, age: float = 0.0) -> None:
        """Wait for a client to take an outcome.

        Does nothing where nobody wants to know: there is no hook, and no other node that has one.

        Args:
            event: The outcome.
            sequence: Where it stands, the same on all nodes.
            now: By the steady clock.
            age: Seconds since it happened, for one of before this node began.
        """
        if (self._hook is None and self._remote is None) or age > self._after + _LATE:
            return
        self.forget(event.job_id)
        due = now + max(self._after - age, 0.0)
        self._waiting[event.job_id] = _Outcome(event, sequence, due)
        if len(self) > self._limit:
            oldest = self._over or self._waiting
            self._report(oldest.popitem(last=False)[1])

    def took(self, sequence: int) -> None:
        """Note that a client took an outcome at once: the other nodes are told."""
        if self._remote is not None:
            self._remote.took(sequence, self._kept)

    def taken(self, job_id: str) -> None:
        """Note that a client took the outcome of a job after all."""
        outcome = self._waiting.pop(job_id, None) or self._over.pop(job_id, None)
        if outcome is not None:
            self.took(outcome.sequence)

    def forget(self, job_id: str) -> None:
        """Note that a job runs again: its outcome was not the last."""
        # Asked with every event of every job; to look is a third of trying to remove.
        if job_id in self._waiting:
            del self._waiting[job_id]
        elif job_id in self._over:
            del self._over[job_id]

    def expire(self, now: float, was_taken: Callable[[str], bool]) -> None:
        """Report the outcomes whose time is over and which `was_taken` still denies."""
        for outcome in _due(self._waiting, now):
            if was_taken(outcome.event.job_id):
                self.took(outcome.sequence)
            elif self._remote is None:
                self._report(outcome)
            elif self._hook is not None:
                outcome.due += _OTHERS_TIME
                self._over[outcome.event.job_id] = outcome
        for outcome in _due(self._over, now):
            self._report(outcome)

    @property
    def _kept(self) -> float:
        # Longer than any node that starts may still say something of the outcome.
        return self._after + 2 * _LATE

    def _report(self, outcome: _Outcome) -> None:
        if self._hook is None:
            return
        call = partial(self._call, self._hook, outcome.event)
        if self._remote is None:
            call(True)
        else:
            self._remote.report(outcome.sequence, self._kept, call)

    def _call(self, hook: OnUndelivered, event: JobEvent, first: bool) -> None:
        if not first:
            return
        self.reported += 1
        try:
            hook(event)
        except Exception:
            logger.exception("on_undelivered failed for job %s", event.job_id)


def _due(outcomes: OrderedDict[str, _Outcome], now: float) -> Iterator[_Outcome]:
    """Take out those that are due, the oldest first; more may come while they are dealt with."""
    while outcomes and next(iter(outcomes.values())).due <= now:
        yield outcomes.popitem(last=False)[1]
