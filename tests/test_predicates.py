"""The two rules, held to the founding specification and to their own statement in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.errors import InvalidArgument, UnknownTopic
from jobqueue_broadcast.events import (
    UNSET,
    Event,
    JobData,
    JobEvent,
    JobFailed,
    JobProgress,
    JobSubmitted,
    MachineShutdown,
    SystemCounts,
    SystemStats,
    WorkerStatusChanged,
)
from jobqueue_broadcast.predicates import (
    Filters,
    JobFacts,
    Subscription,
    is_job_event,
    should_client_receive_event,
    should_monitor_receive_event,
    worker_of,
)
from jobqueue_broadcast.topics import ALL_TOPICS, event_topics
from tests import strategies as some


class PrivateStep(JobEvent, frozen=True, kw_only=True, tag="predicates_test_step"):
    """Of a host, without a client format."""


PROGRESS = JobProgress(job_id="job-1", worker_id="worker-1", progress=0.5)
SHUTDOWN = MachineShutdown(machine_id="machine-1")
ANONYMOUS_FAILURE = JobFailed(job_id="job-1", error="no worker took it")


def submitted(job_type: str, priority: int) -> JobSubmitted:
    data = JobData(id="job-1", job_type=job_type, priority=priority, created_at=1)
    return JobSubmitted(job_id="job-1", job_data=data)


# --- monitors: topics ----------------------------------------------------------------------------


@given(some.subscriptions(), some.events(), st.none() | some.facts())
def test_a_monitor_receives_what_the_specification_says(
    subscription: Subscription, event: Event, job: JobFacts | None
) -> None:
    """The specification's two lines, and the filters in words."""
    topic_held = any(topic in subscription.topics for topic in event_topics(event))
    filters = subscription.filters
    if isinstance(event, JobSubmitted):
        job = JobFacts(event.job_data.job_type, event.job_data.priority)
    if not isinstance(event, JobEvent):
        job = None
    worker = getattr(event, "worker_id", UNSET)
    kept_away = (
        (filters.worker_ids and worker and worker not in filters.worker_ids)
        or (filters.job_types and job and job.job_type not in filters.job_types)
        or (
            filters.priority_range
            and job
            and not filters.priority_range[0] <= job.priority <= filters.priority_range[1]
        )
    )
    assert should_monitor_receive_event(subscription, event, job) == (topic_held and not kept_away)


@given(some.events(), st.none() | some.facts())
def test_a_monitor_that_does_not_narrow_receives_everything(
    event: Event, job: JobFacts | None
) -> None:
    assert should_monitor_receive_event(Subscription.of(), event, job)


@pytest.mark.parametrize("topic", sorted(ALL_TOPICS))
@pytest.mark.parametrize("event", [PROGRESS, ANONYMOUS_FAILURE, SHUTDOWN], ids=["p", "f", "m"])
def test_any_one_topic_of_an_event_is_enough(topic: str, event: Event) -> None:
    held = should_monitor_receive_event(Subscription.of([topic]), event)
    assert held == (topic in event_topics(event))


# --- monitors: filters ---------------------------------------------------------------------------

TYPES = Filters.of(job_types=["comfyui"])
WORKERS = Filters.of(worker_ids=["worker-1", "worker-2"])
RANGE = Filters.of(priority_range=(3, 5))
ALL_THREE = Filters.of(job_types=["comfyui"], worker_ids=["worker-1"], priority_range=(3, 5))


@pytest.mark.parametrize(
    ("filters", "event", "job", "received"),
    [
        (TYPES, PROGRESS, JobFacts("comfyui", 0), True),
        (TYPES, PROGRESS, JobFacts("llm", 0), False),
        (TYPES, PROGRESS, None, True),  # its submission was never seen
        (TYPES, SHUTDOWN, None, True),  # does not apply
        (TYPES, SHUTDOWN, JobFacts("llm", 0), True),  # not a job's event, whatever is said of one
        (TYPES, submitted("llm", 0), None, False),  # tells of itself
        (TYPES, submitted("comfyui", 0), JobFacts("llm", 0), True),  # newer than what was known
        (WORKERS, PROGRESS, None, True),
        (Filters.of(worker_ids=["worker-2"]), PROGRESS, None, False),
        (WORKERS, ANONYMOUS_FAILURE, None, True),
        (WORKERS, SHUTDOWN, None, True),
        (
            WORKERS,
            WorkerStatusChanged(worker_id="worker-9", old_status="idle", new_status="busy"),
            None,
            False,
        ),
        (RANGE, PROGRESS, JobFacts("llm", 2), False),
        (RANGE, PROGRESS, JobFacts("llm", 3), True),
        (RANGE, PROGRESS, JobFacts("llm", 5), True),
        (RANGE, PROGRESS, JobFacts("llm", 6), False),
        (RANGE, PROGRESS, None, True),
        (RANGE, SystemStats(stats=SystemCounts()), None, True),
        (ALL_THREE, PROGRESS, JobFacts("comfyui", 4), True),
        (ALL_THREE, PROGRESS, JobFacts("comfyui", 9), False),
        (ALL_THREE, PROGRESS, JobFacts("llm", 4), False),
    ],
)
def test_filters(filters: Filters, event: Event, job: JobFacts | None, received: bool) -> None:
    assert should_monitor_receive_event(Subscription.of(None, filters), event, job) is received


@pytest.mark.parametrize(
    ("filters", "anything"),
    [(Filters(), False), (Filters.of(), False), (TYPES, True), (WORKERS, True), (RANGE, True)],
)
def test_filters_know_whether_they_keep_anything_away(filters: Filters, anything: bool) -> None:
    assert bool(filters) is anything


@given(some.filters(), some.subscriptions())
def test_filters_and_subscriptions_are_values(filters: Filters, subscription: Subscription) -> None:
    copy = Filters(
        job_types=filters.job_types,
        worker_ids=filters.worker_ids,
        priority_range=filters.priority_range,
    )
    assert (copy, hash(copy)) == (filters, hash(filters))
    again = Subscription.of(subscription.topics, subscription.filters)
    assert (again, hash(again)) == (subscription, hash(subscription))


def test_filters_are_made_of_any_collections() -> None:
    made = Filters.of(job_types=["a", "a"], worker_ids=(w for w in "ab"), priority_range=[1, 1])
    assert made == Filters(
        job_types=frozenset({"a"}), worker_ids=frozenset({"a", "b"}), priority_range=(1, 1)
    )


@pytest.mark.parametrize("name", ["job_types", "worker_ids"])
@pytest.mark.parametrize("wrong", ["comfyui", 5, [], [""], ["a", 5], [[]]])
def test_wrong_names_are_refused(name: str, wrong: object) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}: expected a collection of one or more non"):
        Filters.of(**{name: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["job_types", "worker_ids"])
@pytest.mark.parametrize("wrong", ["comfyui", 5, ["a"], frozenset(), frozenset({""}), None])
def test_wrong_sets_are_refused(name: str, wrong: object) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}: expected a frozenset of one or more non"):
        Filters(**{name: wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [5, "12", (), (1,), (1, 2, 3), (2, 1), (1.0, 2), ("a", "b")])
def test_wrong_ranges_are_refused(wrong: object) -> None:
    expected = r"priority_range: expected \(min, max\) with min <= max, got"
    with pytest.raises(InvalidArgument, match=expected):
        Filters.of(priority_range=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=expected):
        Filters(priority_range=wrong)  # type: ignore[arg-type]


def test_a_range_is_a_tuple() -> None:
    """A list could not be hashed, and so not be looked up by the routing."""
    with pytest.raises(InvalidArgument, match="priority_range"):
        Filters(priority_range=[1, 2])  # type: ignore[arg-type]


def test_wrong_subscriptions_are_refused() -> None:
    with pytest.raises(UnknownTopic, match="nope"):
        Subscription.of(["nope"])
    with pytest.raises(InvalidArgument, match="filters: expected Filters or None, got"):
        Subscription.of(None, {"job_types": ["a"]})  # type: ignore[arg-type]


# --- clients -------------------------------------------------------------------------------------


@given(st.frozensets(some.job_ids), some.events())
def test_a_client_receives_what_the_specification_says(jobs: frozenset[str], event: Event) -> None:
    if isinstance(event, JobEvent):
        assert should_client_receive_event(jobs, event) == (event.job_id in jobs)
    else:
        assert not should_client_receive_event(jobs, event)


def test_a_client_is_not_told_what_has_no_client_format() -> None:
    assert not should_client_receive_event({"job-1"}, PrivateStep(job_id="job-1"))


# --- what both rest on ---------------------------------------------------------------------------


@given(some.events())
def test_job_events_are_those_with_a_job_id(event: Event) -> None:
    assert is_job_event(event) == hasattr(event, "job_id")


@given(some.events())
def test_the_worker_of_an_event(event: Event) -> None:
    assert worker_of(event) == (getattr(event, "worker_id", None) or None)


def test_facts_of_a_job() -> None:
    assert JobFacts.of(submitted("llm", 7).job_data) == JobFacts("llm", 7)
