"""A server killed amid its work: its Python peers miss no outcome and show none twice (R1)."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter

import pytest

from jobqueue_broadcast import Event, JobCompleted, JobData, JobProgress, JobSubmitted
from jobqueue_broadcast.client import Backoff, ClientPeer, Gap, connect_client, connect_monitor
from jobqueue_broadcast.client_format import (
    ClientCompleteJob,
    ClientJobAccepted,
    ClientJobProgress,
)
from tests.faults.processes import ServerProcess

QUICK = Backoff(base=0.01, cap=0.1, stable_after=60.0)


class Work:
    """Jobs with ten progress reports each, shuffled among each other; the host's own record."""

    def __init__(self, jobs: int, seed: int) -> None:
        self.job_ids = [f"job-{number}" for number in range(jobs)]
        self._clock = itertools.count(1_700_000_000_000)
        self.record: list[Event] = []
        steps = [job_id for job_id in self.job_ids for _ in range(12)]
        random.Random(seed).shuffle(steps)
        self._steps = iter(steps)
        self._done: Counter[str] = Counter()

    def next(self, count: int) -> list[Event]:
        """Return the next events, which the host has written down before it broadcasts them."""
        events = [self._event(job_id) for job_id in itertools.islice(self._steps, count)]
        self.record += events
        return events

    def _event(self, job_id: str) -> Event:
        step = self._done[job_id]
        self._done[job_id] += 1
        now = next(self._clock)
        if step == 0:
            data = JobData(id=job_id, job_type="t", created_at=now)
            return JobSubmitted(job_id=job_id, job_data=data, timestamp=now)
        if step == 11:
            return JobCompleted(job_id=job_id, worker_id="w", result=job_id, timestamp=now)
        return JobProgress(job_id=job_id, worker_id="w", progress=step / 10, timestamp=now)


async def follow(client: ClientPeer, job_id: str, shown: dict[str, list[object]]) -> None:
    """Watch a job to its end, keeping everything shown."""
    async for update in client.watch(job_id):
        shown[job_id].append(update)


async def monitor_outcomes(url: str, outcomes: Counter[str], gaps: list[Gap]) -> None:
    """Count the outcomes a monitor is shown, as events or in the state after a gap."""
    async with connect_monitor(url, monitor_id="m", backoff=QUICK) as monitor:
        async for item in monitor:
            if isinstance(item, Gap):
                gaps.append(item)
                assert item.state is not None
                for job in item.state["jobs"]["completed"]:
                    outcomes[job["id"]] = 1
            elif isinstance(item, JobCompleted):
                outcomes[item.job_id] += 1


async def scenario(jobs: int, kills: int) -> None:
    work = Work(jobs, seed=jobs)
    server = await asyncio.to_thread(ServerProcess)
    port, url = server.port, f"ws://127.0.0.1:{server.port}"
    shown: dict[str, list[object]] = {job_id: [] for job_id in work.job_ids}
    outcomes: Counter[str] = Counter()
    gaps: list[Gap] = []
    per_life = 12 * jobs // (kills + 1) + 1
    try:
        async with (
            asyncio.timeout(120),
            connect_client(url, client_id="c", backoff=QUICK) as client,
        ):
            watching = asyncio.create_task(monitor_outcomes(url, outcomes, gaps))
            async with asyncio.TaskGroup() as tasks:
                for job_id in work.job_ids:
                    tasks.create_task(follow(client, job_id, shown))
                for life in range(kills + 1):
                    for _ in range(0, per_life, 50):
                        await asyncio.to_thread(server.broadcast, work.next(50))
                    if life < kills:
                        lost = work.next(20)  # written down, and never broadcast
                        assert lost
                        await asyncio.to_thread(server.kill)
                        server = await asyncio.to_thread(ServerProcess, port)
                        await asyncio.to_thread(server.restore, work.record)
                await asyncio.to_thread(server.broadcast, work.next(12 * jobs))
            while len(outcomes) < jobs:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
            watching.cancel()
    finally:
        server.kill()
    judge(work, shown, outcomes)
    print(
        f"\n{len(work.record)} events, {kills} kills: {jobs} of {jobs} outcomes shown by the "
        f"client, 0 twice, 0 out of order; {len(outcomes)} of {jobs} known to the monitor, which "
        f"was told of {len(gaps)} gaps"
    )


def judge(work: Work, shown: dict[str, list[object]], outcomes: Counter[str]) -> None:
    """Nothing lost, nothing twice, nothing out of order."""
    for job_id in work.job_ids:
        updates = [update for update in shown[job_id] if not isinstance(update, Gap)]
        assert sum(isinstance(update, ClientJobAccepted) for update in updates) <= 1
        assert [u for u in updates if isinstance(u, ClientCompleteJob)] == updates[-1:]
        progress = [u.progress for u in updates if isinstance(u, ClientJobProgress)]
        assert progress == sorted(set(progress))
    assert outcomes == Counter(work.job_ids)


def test_no_outcome_is_lost_or_shown_twice() -> None:
    # More watches than the server takes commands at once, so that pauses and kills meet.
    asyncio.run(scenario(jobs=200, kills=3))


@pytest.mark.soak
def test_no_outcome_is_lost_or_shown_twice_in_full() -> None:
    asyncio.run(scenario(jobs=1000, kills=10))
