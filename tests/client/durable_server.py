"""A server that survives SIGKILL: it writes down what happens before it tells, and restores it.

Usage: durable_server.py PORT LOG. Prints "ready" when it listens. Jobs end by themselves.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec

from jobqueue_broadcast import (
    Event,
    EventBroadcaster,
    JobCompleted,
    JobProgress,
    JobSubmitted,
    Principal,
    SubmitJob,
)
from jobqueue_broadcast.adapters.websockets import SessionLimits, serve
from jobqueue_broadcast.event_types import decode_event


class Host:
    """A job queue in one file. A job is named after its submission, so that one sent again,
    even to the next process, is the same job.
    """

    def __init__(self, log: Path) -> None:
        self.broadcaster = EventBroadcaster()
        past = self._read(log)
        self._log = log.open("ab", buffering=0)
        self.broadcaster.restore(past)
        ended = {event.job_id for event in past if isinstance(event, JobCompleted)}
        self._known = {event.job_id for event in past if isinstance(event, JobSubmitted)}
        self.open = [job_id for job_id in sorted(self._known) if job_id not in ended]

    def submit(self, command: SubmitJob, principal: Principal) -> str:
        job_id = f"job-{command.message_id}"
        if job_id not in self._known:
            self._known.add(job_id)
            data: Any = {"id": job_id, "job_type": command.job_type, "created_at": 1}
            self.tell(JobSubmitted(job_id=job_id, job_data=data, timestamp=1))
            self.open.append(job_id)
        return job_id

    def tell(self, event: Event) -> None:
        self._log.write(msgspec.json.encode(event) + b"\n")
        self.broadcaster.broadcast(event)

    async def work(self) -> None:
        while True:
            await asyncio.sleep(0.001)
            if self.open:
                job_id = self.open.pop(0)
                for step in range(1, 10):
                    self.broadcaster.broadcast(
                        JobProgress(job_id=job_id, worker_id="w", progress=step / 10)
                    )
                    await asyncio.sleep(0)
                self.tell(
                    JobCompleted(
                        job_id=job_id, worker_id="w", result=job_id, timestamp=2, completed_at=2
                    )
                )

    def _read(self, log: Path) -> list[Any]:
        lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
        return [decode_event(line) for line in lines]


async def main() -> None:
    host = Host(Path(sys.argv[2]))
    limits = SessionLimits(command_rate=100_000, command_burst=100_000)
    async with serve(
        host.broadcaster, "127.0.0.1", int(sys.argv[1]), submit=host.submit, session_limits=limits
    ):
        print("ready", flush=True)
        await host.work()


if __name__ == "__main__":
    asyncio.run(main())
