"""This library: `serve`, and `broadcast` of typed events. `--deflate`, `--uvloop`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from benchmarks import frames
from benchmarks.servers.control import commands_for, obey
from benchmarks.servers.loops import run
from jobqueue_broadcast import EventBroadcaster, JobProgress
from jobqueue_broadcast.adapters.websockets import serve


async def main() -> None:
    # Heartbeats and pings would count as frames; everybody's are off.
    broadcaster = EventBroadcaster(heartbeat_interval=1e9)

    def send(number: int, due: int | None) -> None:
        broadcaster.broadcast(
            JobProgress(
                job_id=frames.job_id(number),
                worker_id=frames.stamp(due),
                progress=frames.PROGRESS,
            )
        )

    async def spread(events: float, per_turn: float, jobs: float) -> Any:
        """Events of as many jobs as there are clients, one after the other."""

        def send_one(number: int, due: int | None) -> None:
            job_id = frames.job_id(number, int(jobs))
            worker_id = frames.stamp(due)
            broadcaster.broadcast(
                JobProgress(job_id=job_id, worker_id=worker_id, progress=frames.PROGRESS)
            )

        return await commands_for(send_one)["burst"](events, per_turn)

    async def position() -> Any:
        return {"position": str(broadcaster.history.position)}

    async def retain(events: float) -> Any:
        for number in range(int(events)):
            send(number, None)
            if number % 100 == 0:
                await asyncio.sleep(0)
        return {"position": str(broadcaster.history.position)}

    async def stats() -> Any:
        figures = broadcaster.stats()
        return {
            name: getattr(figures, name)
            for name in ("conflated_total", "too_slow_total", "frames_total", "writes_total")
        }

    async with serve(
        broadcaster,
        "127.0.0.1",
        0,
        compression="--deflate" in sys.argv,
        ping_interval=None,
    ) as server:
        await obey(
            server.port,
            commands_for(send)
            | {"spread": spread, "position": position, "retain": retain, "stats": stats},
        )


if __name__ == "__main__":
    run(main())
