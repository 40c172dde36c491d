"""S5, and the memory of what the core keeps: no sockets, one process of its own."""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from benchmarks.programs import memory
from jobqueue_broadcast import EventBroadcaster, JobCompleted, JobData, JobProgress, JobSubmitted
from jobqueue_broadcast.frames import TextWire

JOBS_EACH = 10
_EVENTS = 2_000


class Nowhere:
    """A connection that takes everything."""

    wire = TextWire()

    def write(self, batch: Any, /) -> None:
        pass

    def backlog(self) -> int:
        return 0

    def close(self, code: int, reason: str, /) -> None:
        pass

    def abort(self) -> None:
        pass


def populated(clients: list[str], jobs: list[list[str]]) -> tuple[EventBroadcaster, float, float]:
    """Return a broadcaster, and the bytes each client and each subscription took."""
    broadcaster = EventBroadcaster(open_job_limit=10_000_000)
    connection = Nowhere()
    began = _size()
    for client in clients:
        broadcaster.add_client(client, connection)
    connected = _size()
    for client, its_jobs in zip(clients, jobs, strict=True):
        for job in its_jobs:
            broadcaster.subscribe_client_to_job(client, job)
    subscribed = _size()
    count = len(clients)
    return (
        broadcaster,
        (connected - began) / count,
        (subscribed - connected) / count / JOBS_EACH,
    )


def population(count: int) -> tuple[EventBroadcaster, list[JobProgress], float, float]:
    clients = [f"client-{number}" for number in range(count)]
    jobs = [[f"job-{client}-{n}" for n in range(JOBS_EACH)] for client in range(count)]
    broadcaster, per_client, per_subscription = populated(clients, jobs)
    # As many different jobs in either population: it is the index that is asked about.
    chosen = random.sample(range(count * JOBS_EACH), min(count * JOBS_EACH, _EVENTS))
    events = [
        JobProgress(job_id=jobs[n // JOBS_EACH][n % JOBS_EACH], worker_id="w", progress=0.25)
        for n in chosen
    ]
    for event in events:
        broadcaster.broadcast(event)
    return broadcaster, events, per_client, per_subscription


def routing(few: int, many: int, runs: int) -> dict[str, Any]:
    """Time `broadcast` of job events in a small and in a large population, in turns."""
    small, small_events, _, _ = population(few)
    large, large_events, per_client, per_subscription = population(many)
    gc.collect()
    small_times, large_times = [], []
    for _ in range(runs):
        small_times.append(_per_event(small, small_events))
        large_times.append(_per_event(large, large_events))
    return {
        "small": small_times,
        "large": large_times,
        "client": per_client,
        "subscription": per_subscription,
    }


def _per_event(broadcaster: EventBroadcaster, events: list[JobProgress]) -> float:
    """Return the CPU µs of one event: the median of a few rounds over all of them."""
    rounds = []
    for _ in range(5):
        began = time.process_time_ns()
        for event in events:
            broadcaster.broadcast(event)
        rounds.append((time.process_time_ns() - began) / len(events) / 1000)
    return statistics.median(rounds)


def retained(count: int) -> float:
    """Return the bytes of one retained event of 125 bytes, its frame included."""
    broadcaster = EventBroadcaster(history_limit=count, history_byte_limit=1 << 40)

    def work() -> None:
        for number in range(count):
            broadcaster.broadcast(
                JobProgress(job_id="job", worker_id=f"{number:060d}", progress=0.25)
            )

    return _grown(work) / count


def latched(count: int, *, ended: bool) -> float:
    """Return the bytes of one job: submitted and under way, or ended."""
    broadcaster = EventBroadcaster(history_limit=0, open_job_limit=count, ended_job_limit=count)

    def work() -> None:
        for number in range(count):
            job = f"job-{number:08d}"
            broadcaster.broadcast(
                JobSubmitted(
                    job_id=job,
                    job_data=JobData(id=job, job_type="render", created_at=1_700_000_000_000),
                )
            )
            broadcaster.broadcast(JobProgress(job_id=job, worker_id="worker-1", progress=0.25))
            if ended:
                broadcaster.broadcast(JobCompleted(job_id=job, worker_id="worker-1"))

    return _grown(work) / count


def _grown(work: Callable[[], None]) -> float:
    tracemalloc.start()
    work()
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size


def _size() -> int:
    gc.collect()
    return memory(os.getpid())


def main() -> None:
    few, many, runs = map(int, sys.argv[1:])
    jobs = max(1_000, many // 5)
    found = routing(few, many, runs) | {
        "event": retained(jobs),
        "open_job": latched(jobs, ended=False),
        "ended_job": latched(jobs, ended=True),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
