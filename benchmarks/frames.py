"""The one frame that everybody sends: a job's progress, 125 bytes of JSON, different each time.

Its `worker_id` is the moment it was made, by the monotonic clock that all processes of a machine
share, so that a reader knows how old a frame is.
"""

from __future__ import annotations

import time

SIZE = 125
JOBS = 1_000

_BEFORE = '{"type":"update_job_progress","timestamp":1700000000000,"job_id":"'
_MIDDLE = '","worker_id":"'
_AFTER = '","progress":0.25}'
_STAMP = b'"worker_id":"'
_DIGITS = 19
_ID_DIGITS = SIZE - len(_BEFORE + _MIDDLE + _AFTER) - _DIGITS - 1

TIMESTAMP = 1_700_000_000_000
PROGRESS = 0.25


def job_id(number: int, jobs: int = JOBS) -> str:
    """Return the id of the job of the n-th event, out of so many jobs."""
    return f"j{number % jobs:0{_ID_DIGITS}d}"


def stamp(due: int | None = None) -> str:
    """Return the `worker_id` of a frame made now, or due at a time (monotonic ns)."""
    return f"{time.monotonic_ns() if due is None else due:0{_DIGITS}d}"


def payload(number: int, due: int | None = None) -> str:
    """Return the n-th frame."""
    return f"{_BEFORE}{job_id(number)}{_MIDDLE}{stamp(due)}{_AFTER}"


def made_at(frame: bytes) -> int | None:
    """Return the stamp of a frame (monotonic ns), if it has one."""
    at = frame.find(_STAMP)
    if at < 0:
        return None
    digits = frame[at + len(_STAMP) : at + len(_STAMP) + _DIGITS]
    return int(digits) if digits.isdigit() else None
