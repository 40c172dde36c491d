"""The cluster of `make demo-cluster`: any process killed, at any moment, and no job lost.

Every job that a client submitted is seen by a monitor to begin once and to end once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.request import urlopen

import pytest

from jobqueue_broadcast import JobAssigned, JobEvent, JobProgress, JobStatusChanged
from jobqueue_broadcast.client import (
    Backoff,
    ClientPeer,
    Gap,
    MonitorPeer,
    connect_client,
    connect_monitor,
)
from jobqueue_broadcast.client_format import ClientJobStatusChanged
from jobqueue_broadcast.errors import CommandFailed
from tests.backplane.servers import RedisServer, free_port, require_redis_server
from tests.examples.programs import PATIENCE, Program, command_of, port_of, running
from tests.tcp import TcpServer

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.slow]

NAMES = ("redis", "server 1", "server 2", "worker 1", "worker 2")
COMMAND = command_of("cluster.py")
BACKOFF = Backoff(base=0.05, cap=0.3)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it is other processes that change it
            await asyncio.sleep(0.02)


class Cluster:
    """The example, and what it prints: its processes now, and its dashboards."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.pids: dict[str, int] = {}
        self.starts: Counter[str] = Counter()
        self.dashboards: list[str] = []

    async def read(self) -> None:
        while line := await self._line():
            name, found, pid = line.partition(" is process ")
            if found:
                self.pids[name] = int(pid)
                self.starts[name] += 1
            elif line.startswith("Dashboard: ") and line[11:] not in self.dashboards:
                self.dashboards.append(line[11:])

    async def _line(self) -> str:
        stdout = self.program.process.stdout
        assert stdout is not None
        return (await stdout.readline()).decode().strip()

    async def kill(self, name: str) -> None:
        """Kill one process, and wait until it has been started again."""
        starts = self.starts[name]
        os.kill(self.pids[name], signal.SIGKILL)
        await until(lambda: self.starts[name] > starts)

    def address(self, number: int) -> str:
        return f"ws://localhost:{port_of(self.dashboards[number])}"

    def assert_gone(self) -> None:
        """Assert that it has left no process behind."""
        for pid in self.pids.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@asynccontextmanager
async def running_cluster(
    *options: str, command: list[str] | None = None
) -> AsyncIterator[Cluster]:
    require_redis_server()
    command = command or [*COMMAND, "--port", "0", *options]
    async with running(*command, session=True) as program:
        cluster = Cluster(program)
        reading = asyncio.create_task(cluster.read())
        try:
            await until(lambda: len(cluster.dashboards) == 2 and len(cluster.pids) == len(NAMES))
            yield cluster
            if program.process.returncode is None:
                assert await program.end(signal.SIGTERM) == 0
            await reading
        finally:
            reading.cancel()
            if program.process.returncode is None:  # the test failed
                program.process.kill()
                for pid in cluster.pids.values():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


class Seen:
    """What a monitor of one server is shown of the jobs, in order."""

    def __init__(self, monitor: MonitorPeer) -> None:
        self.monitor = monitor
        self.events: list[tuple[str, str, Any]] = []
        self.gaps = 0

    async def follow(self) -> None:
        async for item in self.monitor:
            match item:
                case Gap():
                    self.gaps += 1
                case JobEvent():
                    detail = item.progress if isinstance(item, JobProgress) else None
                    self.events.append((type(item).__name__, item.job_id, detail))
                case _:
                    pass

    def count(self, *kinds: type[JobEvent] | str) -> Counter[str]:
        return Counter(job_id for name, job_id, _ in self.events if name in kinds)

    def begins(self) -> Counter[str]:
        return self.count("JobSubmitted")

    def ends(self) -> Counter[str]:
        # What the example changes a status to is `cancelled`.
        return self.count("JobCompleted", "JobFailed", "JobStatusChanged")

    async def open_jobs(self) -> list[Any]:
        """Return the jobs that a newcomer to this server is shown as not ended."""
        jobs = (await self.monitor.full_state())["jobs"]
        return [*jobs["pending"], *jobs["active"]]


@asynccontextmanager
async def seen_at(address: str) -> AsyncIterator[Seen]:
    async with connect_monitor(address, monitor_id="wall", backoff=BACKOFF) as monitor:
        seen = Seen(monitor)
        following = asyncio.create_task(seen.follow())
        yield seen
        following.cancel()


async def submit(clients: list[ClientPeer], count: int) -> list[asyncio.Task[Any]]:
    """Submit so many jobs, by turns, and return the tasks that await their results."""
    awaited = []
    for number in range(count):
        client = clients[number % len(clients)]
        job_id = await client.submit("embed", payload={"seconds": 0.3})
        awaited.append(asyncio.create_task(client.result(job_id), name=job_id))
    return awaited


@pytest.mark.timeout(180)
async def test_any_process_may_be_killed_and_no_job_is_lost() -> None:
    async with (
        asyncio.timeout(150),
        running_cluster("--no-simulation") as cluster,
        connect_client(cluster.address(0), client_id="a", backoff=BACKOFF) as one,
        connect_client(cluster.address(1), client_id="b", backoff=BACKOFF) as two,
        seen_at(cluster, 0) as left,
        seen_at(cluster, 1) as right,
    ):
        awaited: list[asyncio.Task[Any]] = []
        for victim in ("server 1", "worker 1", "redis"):
            awaited += await submit([one, two], 6)
            # Amid the work: some jobs are in hand, some wait.
            known = len(right.events)
            await until(lambda: len(right.events) > known + 5)  # noqa: B023
            if victim == "worker 1":
                # Not just when it is done: then it could not but say so twice.
                await until(lambda: 0.1 < right.progress.get("worker-1", 1) < 0.5)
            killing = asyncio.create_task(cluster.kill(victim))
            awaited += await submit([one, two], 4)
            await killing
        results = await asyncio.gather(*awaited)
        await until(lambda: len(left.events) >= len(right.events))
        jobs = {task.get_name() for task in awaited}
        ends = right.count("JobCompleted")
        retried = sum(number > 1 for number in right.count("JobAssigned").values())
        print(
            f"\ncluster: {len(jobs)} jobs; killed: a server, a worker, redis;"
            f" outcomes {len(results)}, lost {len(jobs - set(ends))},"
            f" shown twice {sum(number - 1 for number in ends.values())},"
            f" retried {retried}, gaps {left.gaps + right.gaps}"
        )
        assert len(jobs) == len(results) == 30
        assert {result["by"] for result in results} == {"worker-1", "worker-2"}
        assert ends == Counter(jobs)
        assert left.events == right.events
        assert retried >= 1
        assert left.gaps == right.gaps == 0


async def test_it_shows_two_dashboards_and_ends_by_itself() -> None:
    async with running_cluster("--seconds", "6") as cluster:
        for address in cluster.dashboards:
            with await asyncio.to_thread(urlopen, address) as page:
                assert page.status == 200
        assert await cluster.program.status() == 0
        for pid in cluster.pids.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def test_a_job_can_be_cancelled_at_the_other_server() -> None:
    async with (
        running_cluster("--no-simulation") as cluster,
        connect_client(cluster.address(0), client_id="a") as one,
        connect_client(cluster.address(1), client_id="b") as two,
    ):
        job_id = await one.submit("embed", payload={"seconds": 60})
        await two.cancel(job_id)
        outcome = await one.watch(job_id).outcome()
        assert isinstance(outcome, ClientJobStatusChanged)
        assert outcome.status == "cancelled"
