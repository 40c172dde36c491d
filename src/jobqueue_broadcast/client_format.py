"""What a client is told of its jobs: the EmProps frames, each made straight from an event.

There is no adapter layer and no rewriting of JSON: `client_frame` looks the event's class up in
one table and calls the constructor it finds there (wire protocol, section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

from msgspec import UNSET, Struct, UnsetType

from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.events import (
    Event,
    JobAssigned,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobProgress,
    JobStatus,
    JobStatusChanged,
    JobSubmitted,
)

__all__ = [
    "ClientCompleteJob",
    "ClientFrame",
    "ClientJobAccepted",
    "ClientJobAssigned",
    "ClientJobProgress",
    "ClientJobStatusChanged",
    "FailureResult",
    "SuccessResult",
    "add_client_format",
    "client_frame",
    "has_client_format",
    "is_declared_format",
]


class ClientFrame(Struct, frozen=True, kw_only=True, tag_field="type"):
    """A frame to a client about one job."""

    timestamp: int
    job_id: str


class ClientJobAccepted(ClientFrame, frozen=True, kw_only=True, tag="job_accepted"):
    """The job is in the queue."""

    status: Literal["queued"] = "queued"


class ClientJobAssigned(ClientFrame, frozen=True, kw_only=True, tag="job_assigned"):
    """A worker has the job."""

    worker_id: str


class ClientJobStatusChanged(ClientFrame, frozen=True, kw_only=True, tag="job_status_changed"):
    """The job has a new status."""

    status: JobStatus


class ClientJobProgress(ClientFrame, frozen=True, kw_only=True, tag="update_job_progress"):
    """How far the job is, from 0.0 to 1.0."""

    progress: float


class SuccessResult(Struct, frozen=True, kw_only=True, tag_field="status", tag="success"):
    """The result of a job that ended well; `data` is `null` when its worker gave none."""

    data: Any


class FailureResult(Struct, frozen=True, kw_only=True, tag_field="status", tag="failed"):
    """The result of a job that ended badly."""

    error: str


class ClientCompleteJob(ClientFrame, frozen=True, kw_only=True, tag="complete_job"):
    """The job's outcome."""

    worker_id: str | UnsetType = UNSET
    result: SuccessResult | FailureResult


def _accepted(event: JobSubmitted) -> ClientJobAccepted:
    return ClientJobAccepted(timestamp=event.timestamp, job_id=event.job_id)


def _assigned(event: JobAssigned) -> ClientJobAssigned:
    return ClientJobAssigned(
        timestamp=event.timestamp, job_id=event.job_id, worker_id=event.worker_id
    )


def _status_changed(event: JobStatusChanged) -> ClientJobStatusChanged:
    return ClientJobStatusChanged(
        timestamp=event.timestamp, job_id=event.job_id, status=event.new_status
    )


def _progress(event: JobProgress) -> ClientJobProgress:
    return ClientJobProgress(
        timestamp=event.timestamp, job_id=event.job_id, progress=event.progress
    )


def _completed(event: JobCompleted) -> ClientCompleteJob:
    return ClientCompleteJob(
        timestamp=event.timestamp,
        job_id=event.job_id,
        worker_id=event.worker_id,
        result=SuccessResult(data=None if event.result is UNSET else event.result),
    )


def _failed(event: JobFailed) -> ClientCompleteJob:
    return ClientCompleteJob(
        timestamp=event.timestamp,
        job_id=event.job_id,
        worker_id=event.worker_id,
        result=FailureResult(error=event.error),
    )


ClientFormat: TypeAlias = Callable[[Any], object]
"""A host's: makes a struct of an event of its own. Checked when it returns."""

_FORMATS: dict[type[Event], Callable[[Any], Struct]] = {
    JobSubmitted: _accepted,
    JobAssigned: _assigned,
    JobStatusChanged: _status_changed,
    JobProgress: _progress,
    JobCompleted: _completed,
    JobFailed: _failed,
}

_DECLARED: set[type[Event]] = set()


def has_client_format(event: Event | type[Event]) -> bool:
    """Tell whether clients can be told of this kind of event at all."""
    return (event if isinstance(event, type) else type(event)) in _FORMATS


def client_frame(event: JobEvent) -> Struct:
    """Make the EmProps frame of a job event that has a client format.

    Raises:
        KeyError: The event's class has no client format; ask `has_client_format` first.
        InvalidArgument: A host's client format raised, or returned something else than a struct.
    """
    return _FORMATS[type(event)](event)


def is_declared_format(event: Event) -> bool:
    """Tell whether the client format of an event is a host's, and may fail."""
    return type(event) in _DECLARED


def add_client_format(cls: type[JobEvent], make: ClientFormat) -> None:
    """Enter a host's event class and the constructor of its client frame into the table."""
    _FORMATS[cls] = partial(_checked, cls.__name__, make)
    _DECLARED.add(cls)


def _checked(name: str, make: ClientFormat, event: JobEvent) -> Struct:
    try:
        frame = make(event)
    except Exception as error:
        raise InvalidArgument(f"client_format of {name} raised {error!r}") from error
    if not isinstance(frame, Struct):
        raise InvalidArgument(
            f"client_format of {name}: expected it to return a msgspec.Struct, "
            f"got {type(frame).__name__}"
        )
    return frame
