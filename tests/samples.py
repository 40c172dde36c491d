"""Events of a job as tests broadcast them, and what came of them."""

from typing import Any

from jobqueue_broadcast.events import JobCompleted, JobData, JobProgress, JobSubmitted

__all__ = ["completed", "progress", "submitted", "types"]


def submitted(job_id: str = "a", timestamp: int = 0) -> JobSubmitted:
    data = JobData(id=job_id, job_type="x", created_at=1)
    return JobSubmitted(job_id=job_id, job_data=data, timestamp=timestamp)


def progress(job_id: str = "a", timestamp: int = 0) -> JobProgress:
    return JobProgress(job_id=job_id, worker_id="w", progress=0.5, timestamp=timestamp)


def completed(job_id: str = "a", timestamp: int = 0) -> JobCompleted:
    return JobCompleted(job_id=job_id, worker_id="w", timestamp=timestamp)


def types(connection: Any) -> list[str]:
    return [frame["type"] for frame in connection.frames]
