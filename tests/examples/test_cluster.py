"""The cluster of `make demo-cluster`: any process killed, at any moment, and no job lost.

Every job that a client submitted is seen by a monitor to begin once and to end once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.request import urlopen

import pytest

from jobqueue_broadcast import JobEvent, JobProgress
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
from tests.examples.programs import PATIENCE, Program, command_of, outcome, port_of, running
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
                os.killpg(program.process.pid, signal.SIGKILL)
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

    def count(self, *kinds: str) -> Counter[str]:
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
    monitor_id = f"wall-{port_of(address)}"
    async with connect_monitor(address, monitor_id=monitor_id, backoff=BACKOFF) as monitor:
        seen = Seen(monitor)
        following = asyncio.create_task(seen.follow())
        try:
            yield seen
        finally:
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
        seen_at(cluster.address(0)) as left,
        seen_at(cluster.address(1)) as right,
    ):
        awaited: list[asyncio.Task[Any]] = []
        for victim in ("server 1", "worker 1", "redis"):
            awaited += await submit([one, two], 6)
            # Amid the work: some jobs are in hand, some wait.
            known = len(right.events)
            await until(lambda: len(right.events) > known + 5)  # noqa: B023
            killing = asyncio.create_task(cluster.kill(victim))
            awaited += await submit([one, two], 4)
            await killing
        results = await asyncio.gather(*awaited)
        jobs = {task.get_name() for task in awaited}
        await until(lambda: jobs <= set(left.ends()) and jobs <= set(right.ends()))
        ends = right.ends()
        retried = sum(number > 1 for number in right.count("JobAssigned").values())
        print(
            f"\ncluster: {len(jobs)} jobs; killed: a server, a worker, redis;"
            f" outcomes {len(results)}, lost {len(jobs - set(ends))},"
            f" shown twice {sum(number - 1 for number in ends.values())},"
            f" retried {retried}, gaps {left.gaps + right.gaps}"
        )
        assert len(jobs) == len(results) == 30
        assert {result["by"] for result in results} == {"worker-1", "worker-2"}
        assert right.begins() == ends == Counter(jobs)
        assert left.events == right.events
        assert left.gaps == right.gaps == 0
        assert not [*await left.open_jobs(), *await right.open_jobs()]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on PATH")
async def test_make_demo_cluster_shows_two_dashboards_until_ctrl_c() -> None:
    """With this Python in place of one in a new virtual environment."""
    installed = ["INSTALLED=", "--old-file=.venv/.stamp-group-redis-server"]
    command = ["make", "demo-cluster", f"PY={sys.executable}", *installed, "DEMO_FLAGS=--port 0"]
    async with running_cluster(command=command) as cluster:
        for address in cluster.dashboards:
            with await asyncio.to_thread(urlopen, address) as page:
                assert page.status == 200
        os.killpg(cluster.program.process.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
        await cluster.program.status()
        cluster.assert_gone()


async def test_it_ends_by_itself() -> None:
    require_redis_server()
    async with running(*COMMAND, "--port", "0", "--seconds", "2") as program:
        cluster = Cluster(program)
        await cluster.read()
        assert await program.status() == 0
        cluster.assert_gone()


async def test_it_says_why_it_cannot_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, _, why = await outcome(*COMMAND, "--port", port)
    assert status == 1
    assert "already in use" in why
    assert "Traceback" not in why


async def test_a_job_can_be_cancelled_at_the_other_server() -> None:
    async with (
        running_cluster("--no-simulation") as cluster,
        connect_client(cluster.address(0), client_id="a") as one,
        connect_client(cluster.address(1), client_id="b") as two,
    ):
        job_id = await one.submit("embed", payload={"seconds": 60})
        await two.cancel(job_id)
        end = await one.watch(job_id).outcome()
        assert isinstance(end, ClientJobStatusChanged)
        assert end.status == "cancelled"


# --- killed between two steps --------------------------------------------------------------------


class Trap(TcpServer):
    """A way to a redis-server, on which whoever says a word is caught in the middle of saying it.

    Either Redis does not hear of it, or it does what it is told, and its answer goes nowhere.
    """

    def __init__(self, target: int) -> None:
        super().__init__(self._join)
        self.target = target
        self.caught = asyncio.Event()
        self._word: bytes | None = None
        self._done = False

    def set(self, word: bytes, *, done: bool) -> None:
        """Catch the first to say the word; `done`: when Redis has done it."""
        self._word = word
        self._done = done

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        said = False

        async def ask() -> None:
            nonlocal said
            while data := await reader.read(65536):
                if self._word is not None and self._word in data:
                    self._word = None
                    said = True
                    if not self._done:
                        await self._catch()
                back.write(data)
            back.close()

        async def answer() -> None:
            while data := await there.read(65536):
                if said:
                    await self._catch()
                writer.write(data)
            writer.close()

        try:
            await asyncio.gather(ask(), answer())
        finally:
            back.transport.abort()

    async def _catch(self) -> None:
        self.caught.set()
        await asyncio.Event().wait()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer(require_redis_server())
    try:
        yield server.start()
    finally:
        server.close()


async def run_job(client: ClientPeer, *, cancelled: bool) -> str:
    """Submit a job and wait for its end; return its id."""
    job_id = await client.submit("embed", payload={"seconds": 60 if cancelled else 0.1})
    if cancelled:
        with suppress(CommandFailed):  # killed when it was cancelled: it is no longer there
            await client.cancel(job_id)
    await client.watch(job_id).outcome()
    return job_id


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("victim", "word"),
    [("server", b"job_submitted"), ("server", b"cancelled"), ("worker", b"complete_job")],
    ids=["submits", "cancels", "completes"],
)
async def test_a_process_is_killed_at_the_moment_it(
    victim: str, word: bytes, done: bool, redis_server: RedisServer
) -> None:
    async with asyncio.timeout(90), Trap(redis_server.port) as trap:
        ports = [free_port(), free_port()]
        part = [*COMMAND, "--no-simulation", "--redis", f"redis://127.0.0.1:{trap.port}"]
        server, other = ([*part, "--port", str(port)] for port in ports)
        worker = [*part, "--worker", "worker-1"]
        async with (
            running(*server) as running_server,
            running(*other),
            running(*worker) as running_worker,
            connect_client(f"ws://localhost:{ports[0]}", client_id="a", backoff=BACKOFF) as client,
            seen_at(f"ws://localhost:{ports[1]}") as seen,
        ):
            trap.set(word, done=done)
            job = asyncio.create_task(run_job(client, cancelled=word == b"cancelled"))
            await trap.caught.wait()
            killed = running_server if victim == "server" else running_worker
            assert await killed.end(signal.SIGKILL) == -signal.SIGKILL
            async with running(*(server if victim == "server" else worker)):
                job_id = await job
                # Whatever else was queued, or in hand, is done before this one.
                last = await client.submit("embed", payload={"seconds": 0})
                await client.result(last)
                await until(lambda: seen.ends()[last])
                assert seen.begins() == seen.ends() == Counter([job_id, last])
                assert seen.gaps == 0
                assert not await seen.open_jobs()
                if victim == "worker":  # done again if it had not ended, and only then
                    assert seen.count("JobAssigned")[job_id] == (1 if done else 2)
