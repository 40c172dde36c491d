"""Who should receive an event: the rules of the founding specification, as pure functions.

Read beside "Event Filtering Logic" of the specification: the same two rules, in the same order.
Routing does not call these for every connection; it uses an index that property tests hold equal
to them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from typing_extensions import TypeIs

from jobqueue_broadcast.client_format import has_client_format
from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.events import Event, JobData, JobEvent, JobSubmitted
from jobqueue_broadcast.topics import event_topics, members, parse_topics

__all__ = [
    "Filters",
    "JobFacts",
    "Subscription",
    "is_job_event",
    "should_client_receive_event",
    "should_monitor_receive_event",
]


class JobFacts(Struct, frozen=True):
    """What filters ask about a job; known from its `JobSubmitted`, for all its later events."""

    job_type: str
    priority: int

    @classmethod
    def of(cls, data: JobData) -> JobFacts:
        """Take the facts from a job's description."""
        return cls(data.job_type, data.priority)


class Filters(Struct, frozen=True, kw_only=True):
    """What a monitor narrows its topics to; a filter left out lets everything pass.

    Args:
        job_types: Only jobs of these types.
        worker_ids: Only events that name one of these workers.
        priority_range: Only jobs whose priority is between these two, both included.

    Raises:
        InvalidArgument: An empty list, or a range that is not `(min, max)` with `min <= max`.

    An event to which a filter does not apply passes it: a machine event under `job_types`, a job
    whose submission was never seen (wire protocol, section 2).
    """

    job_types: frozenset[str] | UnsetType = UNSET
    worker_ids: frozenset[str] | UnsetType = UNSET
    priority_range: tuple[int, int] | UnsetType = UNSET

    def __post_init__(self) -> None:
        for name in ("job_types", "worker_ids"):
            values = getattr(self, name)
            if values is UNSET:
                continue
            if not _are_ids(members(values)) or not isinstance(values, frozenset):
                raise InvalidArgument(
                    f"{name}: expected a frozenset of one or more non-empty strings, got {values!r}"
                )
        if self.priority_range is not UNSET:
            _checked_range(self.priority_range)

    @classmethod
    def of(
        cls,
        *,
        job_types: Iterable[str] | None = None,
        worker_ids: Iterable[str] | None = None,
        priority_range: Iterable[int] | None = None,
    ) -> Filters:
        """Make filters from any collections; `None` leaves a filter out."""
        return cls(
            job_types=UNSET if job_types is None else _names("job_types", job_types),
            worker_ids=UNSET if worker_ids is None else _names("worker_ids", worker_ids),
            priority_range=UNSET if priority_range is None else _range(priority_range),
        )

    def __bool__(self) -> bool:
        """Tell whether there is anything these filters could keep away."""
        return not (
            self.job_types is UNSET and self.worker_ids is UNSET and self.priority_range is UNSET
        )

    def pass_event(self, worker_id: str | None, facts: JobFacts | None) -> bool:
        """Tell whether an event of this worker and of a job with these facts passes."""
        if self.worker_ids is not UNSET and worker_id is not None:
            if worker_id not in self.worker_ids:
                return False
        if facts is None:
            return True
        if self.job_types is not UNSET and facts.job_type not in self.job_types:
            return False
        if self.priority_range is not UNSET:
            low, high = self.priority_range
            return low <= facts.priority <= high
        return True


class Subscription(Struct, frozen=True):
    """What a monitor asked to see: some topics, narrowed by filters."""

    topics: frozenset[str]
    filters: Filters = Filters()

    @classmethod
    def of(
        cls, topics: Iterable[str] | None = None, filters: Filters | None = None
    ) -> Subscription:
        """Check the topics (`None`: all) and make a subscription.

        Raises:
            UnknownTopic: A topic belongs to no event type.
        """
        return cls(parse_topics(topics), Filters() if filters is None else _checked(filters))


def should_monitor_receive_event(
    subscription: Subscription, event: Event, job: JobFacts | None = None
) -> bool:
    """Monitors receive all events of the topics they hold, as far as their filters let them.

    Args:
        subscription: The monitor's topics and filters.
        event: What happened.
        job: What is known of the event's job, if it has one and its submission was seen.
    """
    if isinstance(event, JobSubmitted):
        job = JobFacts.of(event.job_data)
    topics = event_topics(event)
    return any(topic in subscription.topics for topic in topics) and (
        subscription.filters.pass_event(worker_of(event), job if is_job_event(event) else None)
    )


def should_client_receive_event(subscribed_jobs: Collection[str], event: Event) -> bool:
    """Clients receive only job events, and of those only the ones of jobs they subscribed to.

    An event class of the host's own that has no client format reaches no client.
    """
    if is_job_event(event) and has_client_format(event):
        return event.job_id in subscribed_jobs
    return False  # Non-job events are not sent to clients.


def is_job_event(event: Event) -> TypeIs[JobEvent]:
    """Tell whether an event is about one job."""
    return event.about_job


def worker_of(event: Event) -> str | None:
    """Return the worker an event names, if it names one."""
    worker_id = getattr(event, "worker_id", None)
    return worker_id if isinstance(worker_id, str) else None


def _are_ids(values: list[Any] | None) -> bool:
    return bool(values) and all(isinstance(value, str) and value for value in values or ())


def _names(name: str, values: object) -> frozenset[str]:
    listed = members(values)
    if listed is None or not _are_ids(listed):
        raise InvalidArgument(
            f"{name}: expected a collection of one or more non-empty strings, got {values!r}"
        )
    return frozenset(listed)


def _range(values: object) -> tuple[int, int]:
    listed = members(values)
    return _checked_range(values if listed is None else tuple(listed))


def _checked_range(pair: object) -> tuple[int, int]:
    match pair:
        # A list would match as well, but cannot be hashed.
        case (int() as low, int() as high) if isinstance(pair, tuple) and low <= high:
            return low, high
        case _:
            raise InvalidArgument(
                f"priority_range: expected (min, max) with min <= max, got {pair!r}"
            )


def _checked(filters: object) -> Filters:
    if not isinstance(filters, Filters):
        raise InvalidArgument(f"filters: expected Filters or None, got {filters!r}")
    return filters
