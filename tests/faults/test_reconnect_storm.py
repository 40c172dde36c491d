"""All peers lose the server at once, and come back spread out, with nothing lost (R11)."""

from __future__ import annotations

import asyncio

import pytest

from jobqueue_broadcast import Event, JobCompleted, JobData, JobSubmitted
from jobqueue_broadcast.client import Backoff, connect_client
from tests.faults.processes import ServerProcess

NOW = 1_700_000_000_000


async def scenario(clients: int) -> None:
    server = await asyncio.to_thread(ServerProcess)
    port, url = server.port, f"ws://127.0.0.1:{server.port}"
    connected = asyncio.Semaphore(0)
    backoff = Backoff(base=0.1, cap=2.0, stable_after=60.0)

    async def wait_for_job(number: int) -> object:
        async with connect_client(url, client_id=f"c{number}", backoff=backoff) as client:
            await client.subscribe(f"job-{number}")
            connected.release()
            return await client.result(f"job-{number}")

    submitted: list[Event] = [
        JobSubmitted(
            job_id=f"job-{number}",
            job_data=JobData(id=f"job-{number}", job_type="t", created_at=NOW),
            timestamp=NOW,
        )
        for number in range(clients)
    ]
    done: list[Event] = [
        JobCompleted(job_id=f"job-{number}", worker_id="w", result=number, timestamp=NOW + 1)
        for number in range(clients)
    ]
    try:
        async with asyncio.timeout(300):
            waiting = [asyncio.create_task(wait_for_job(number)) for number in range(clients)]
            for _ in range(clients):
                await connected.acquire()
            await asyncio.to_thread(server.broadcast, submitted)
            await asyncio.to_thread(server.kill)
            server = await asyncio.to_thread(ServerProcess, port)
            await asyncio.to_thread(server.restore, submitted + done[: clients // 2])
            await asyncio.to_thread(server.broadcast, done[clients // 2 :])
            results = await asyncio.gather(*waiting)
    finally:
        server.kill()
    assert results == list(range(clients))
    print(f"\n{clients} clients lost the server at once: {clients} recovered, 0 outcomes lost")


def test_everyone_recovers() -> None:
    asyncio.run(scenario(100))


@pytest.mark.soak
def test_everyone_recovers_in_full() -> None:
    asyncio.run(scenario(2000))
