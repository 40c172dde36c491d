from typing import Any

import pytest
from hypothesis import given

from jobqueue_broadcast import client_format
from jobqueue_broadcast.client_format import (
    add_client_format,
    client_frame,
    has_client_format,
    is_declared_format,
)
from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.events import (
    EVENT_CLASSES,
    UNSET,
    Event,
    JobAssigned,
    JobCompleted,
    JobData,
    JobEvent,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    JobSubmitted,
    encode,
)
from tests import strategies as some
from tests.strict_json import parse

AT = 1_642_700_000_000
DATA = JobData(id="job-1", job_type="comfyui", priority=5, created_at=AT)


class Step(JobEvent, frozen=True, kw_only=True, tag="client_format_test_step"):
    """Of a host."""


@pytest.fixture(autouse=True)
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats that a test enters are gone after it."""
    monkeypatch.setattr(client_format, "_FORMATS", dict(client_format._FORMATS))
    monkeypatch.setattr(client_format, "_DECLARED", set(client_format._DECLARED))


# Wire protocol, section 4, row by row.
ROWS: list[tuple[JobEvent, dict[str, Any]]] = [
    (
        JobSubmitted(timestamp=AT, job_id="job-1", job_data=DATA),
        {"type": "job_accepted", "timestamp": AT, "job_id": "job-1", "status": "queued"},
    ),
    (
        JobAssigned(timestamp=AT, job_id="job-1", worker_id="worker-1"),
        {"type": "job_assigned", "timestamp": AT, "job_id": "job-1", "worker_id": "worker-1"},
    ),
    (
        JobStatusChanged(
            timestamp=AT, job_id="job-1", old_status="queued", new_status="in_progress"
        ),
        {
            "type": "job_status_changed",
            "timestamp": AT,
            "job_id": "job-1",
            "status": "in_progress",
        },
    ),
    (
        JobProgress(timestamp=AT, job_id="job-1", worker_id="worker-1", progress=0.5, message="m"),
        {"type": "update_job_progress", "timestamp": AT, "job_id": "job-1", "progress": 0.5},
    ),
    (
        JobCompleted(timestamp=AT, job_id="job-1", worker_id="worker-1", result={"images": 2}),
        {
            "type": "complete_job",
            "timestamp": AT,
            "job_id": "job-1",
            "worker_id": "worker-1",
            "result": {"status": "success", "data": {"images": 2}},
        },
    ),
    (
        JobCompleted(timestamp=AT, job_id="job-1", worker_id="worker-1"),
        {
            "type": "complete_job",
            "timestamp": AT,
            "job_id": "job-1",
            "worker_id": "worker-1",
            "result": {"status": "success", "data": None},
        },
    ),
    (
        JobFailed(timestamp=AT, job_id="job-1", error="Error message", worker_id="worker-1"),
        {
            "type": "complete_job",
            "timestamp": AT,
            "job_id": "job-1",
            "worker_id": "worker-1",
            "result": {"status": "failed", "error": "Error message"},
        },
    ),
    (
        JobFailed(timestamp=AT, job_id="job-1", error="Error message"),
        {
            "type": "complete_job",
            "timestamp": AT,
            "job_id": "job-1",
            "result": {"status": "failed", "error": "Error message"},
        },
    ),
]


@pytest.mark.parametrize(("event", "frame"), ROWS)
def test_each_row_of_the_protocol(event: JobEvent, frame: dict[str, Any]) -> None:
    assert parse(encode(client_frame(event))) == frame


@pytest.mark.parametrize("cls", EVENT_CLASSES)
def test_every_job_event_has_a_client_format_and_no_other_event(cls: type[Event]) -> None:
    assert has_client_format(cls) == issubclass(cls, JobEvent)


@given(some.job_events())
def test_every_client_frame_is_accepted_by_a_strict_parser(event: JobEvent) -> None:
    assert has_client_format(event)
    frame = parse(encode(client_frame(event)))
    assert list(frame)[:3] == ["type", "timestamp", "job_id"]
    assert (frame["timestamp"], frame["job_id"]) == (event.timestamp, event.job_id)
    assert None not in frame.values()
    if isinstance(event, JobCompleted):
        data = None if event.result is UNSET else event.result
        assert frame["result"] == {"status": "success", "data": data}


def test_a_hosts_event_has_the_format_it_was_given() -> None:
    assert not has_client_format(Step)
    with pytest.raises(KeyError):
        client_frame(Step(job_id="job-1"))
    add_client_format(Step, lambda event: DATA)
    assert has_client_format(Step(job_id="job-1"))
    assert client_frame(Step(job_id="job-1")) is DATA


@pytest.mark.parametrize("made", [None, {"type": "step"}, b"{}", DATA.__class__])
def test_a_hosts_format_must_return_a_struct(made: Any) -> None:
    add_client_format(Step, lambda event: made)
    with pytest.raises(InvalidArgument, match=r"client_format of Step: expected it to return a"):
        client_frame(Step(job_id="job-1"))


def test_a_hosts_format_that_raises_is_named() -> None:
    error = LookupError("no such step")

    def fails(_: Step) -> None:
        raise error

    add_client_format(Step, fails)
    with pytest.raises(InvalidArgument, match=r"client_format of Step raised .*no such step") as it:
        client_frame(Step(job_id="job-1"))
    assert it.value.__cause__ is error


def test_only_a_format_that_a_host_declared_is_known_to_fail() -> None:
    step = Step(job_id="job-1")
    assert not is_declared_format(step)
    add_client_format(Step, lambda event: DATA)
    assert is_declared_format(step)
    assert not any(is_declared_format(event) for event, _ in ROWS)
