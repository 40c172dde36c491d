"""A real server process, killed in the middle of things and started again."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from jobqueue_broadcast import JobCompleted
from jobqueue_broadcast.client import ClientPeer, Gap, MonitorPeer, connect_client, connect_monitor
from jobqueue_broadcast.client._jobs import is_outcome
from jobqueue_broadcast.client_format import ClientJobAccepted
from tests.client.harness import BACKOFF, in_time, until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

JOBS = 300
KILLS = 3


class Process:
    def __init__(self, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        program = Path(__file__).with_name("durable_server.py")
        command = [sys.executable, str(program), str(self.port), str(self._log)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


async def test_killed_again_and_again_every_outcome_is_shown_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Process(tmp_path / "log")
    url = f"ws://127.0.0.1:{server.port}"
    results: dict[str, Any] = {}
    shown: dict[str, Counter[str]] = {}
    gaps = Counter[str]()

    async def one(client: ClientPeer) -> None:
        job_id = await client.submit("x")
        counts = shown[job_id] = Counter()
        async for update in client.watch(job_id):
            counts["accepted"] += isinstance(update, ClientJobAccepted)
            counts["outcome"] += is_outcome(update)
            gaps["client"] += isinstance(update, Gap)
        results[job_id] = await client.result(job_id)

    async def look(monitor: MonitorPeer) -> None:
        async for item in monitor:
            if isinstance(item, Gap):
                gaps["monitor"] += 1
                assert item.state is not None
                completed.update(job["id"] for job in item.state["jobs"]["completed"])
            elif isinstance(item, JobCompleted):
                completed.add(item.job_id)

    completed: set[str] = set()
    connections = 0
    try:
        async with (
            in_time(100),
            connect_client(url, client_id="c", backoff=BACKOFF) as client,
            connect_monitor(url, monitor_id="m", backoff=BACKOFF) as monitor,
            anyio.create_task_group() as watching,
        ):
            watching.start_soon(look, monitor)
            async with anyio.create_task_group() as tasks:
                for _ in range(JOBS):
                    tasks.start_soon(one, client)
                for kill in range(1, KILLS + 1):
                    await until(lambda: len(results) >= kill * JOBS / (KILLS + 1))  # noqa: B023
                    server.kill()
                    server.start()
            await until(lambda: len(completed) == JOBS)
            watching.cancel_scope.cancel()
            connections = client.connections
    finally:
        server.kill()
    with capsys.disabled():
        print(f"\n{JOBS} jobs, {KILLS} kills: {connections} connections, gaps {dict(gaps)}")
    assert results == {job_id: job_id for job_id in shown}
    assert len(results) == JOBS
    assert all(counts == {"accepted": 1, "outcome": 1} for counts in shown.values())
    assert connections == KILLS + 1
    assert gaps["monitor"] == KILLS
