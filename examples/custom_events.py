"""An event type of the host's own, with a topic and a client format of its own.

    python examples/custom_events.py

A monitor that holds only the topic `previews`, and a client of one job, print what they are sent;
then it ends by itself.
"""

import asyncio

from msgspec import Struct
from websockets.asyncio.client import connect

from jobqueue_broadcast import EventBroadcaster, JobEvent, JobProgress, declare_event
from jobqueue_broadcast.adapters.websockets import serve


class PreviewFrame(Struct, tag_field="type", tag="preview"):
    """What a client is told of a preview: not which worker made it."""

    timestamp: int
    job_id: str
    url: str


@declare_event(
    topics=["previews"],
    client_format=lambda event: PreviewFrame(
        timestamp=event.timestamp, job_id=event.job_id, url=event.url
    ),
)
class PreviewRendered(JobEvent, frozen=True, kw_only=True, tag="preview_rendered"):
    """A worker rendered a picture of an unfinished job. Monitors receive just these fields."""

    worker_id: str
    url: str


async def main() -> None:
    broadcaster = EventBroadcaster()
    async with (
        serve(broadcaster, "localhost", 0) as server,
        connect(f"ws://localhost:{server.port}/ws/monitor/m?topics=previews") as monitor,
        connect(f"ws://localhost:{server.port}/ws/client/c?jobs=job-1") as client,
    ):
        print("monitor:", await monitor.recv())
        print("client: ", await client.recv())
        print("client: ", await client.recv())
        for job_id in ("job-1", "job-2"):
            broadcaster.broadcast(JobProgress(job_id=job_id, worker_id="worker-1", progress=0.5))
            url = f"/previews/{job_id}.png"
            broadcaster.broadcast(PreviewRendered(job_id=job_id, worker_id="worker-1", url=url))
        for _ in range(2):  # the previews of both jobs, and nothing else
            print("monitor:", await monitor.recv())
        for _ in range(2):  # all of job-1, and nothing else
            print("client: ", await client.recv())


if __name__ == "__main__":
    asyncio.run(main())
