"""A job queue with simulated machines and workers, and a dashboard that shows it live.

    python examples/standalone_server.py [--host localhost] [--port 3331] [--token TOKEN]
                                         [--no-simulation]

Clients submit real jobs (`submit_job`), whose `payload` may say how they go: `seconds` is how long
one takes, `error` what it fails with, and `fails` how many of its three attempts do, if not all.
With `--no-simulation` there are only those: no job comes by itself, and no worker leaves.
"""

import argparse
import asyncio
import random
import signal
from typing import Annotated, Any, NoReturn
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from jobqueue_broadcast import (
    EventBroadcaster,
    HookRefusal,
    Principal,
    StaticTokens,
    SubmitJob,
    events,
)
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.errors import InvalidArgument

MACHINES = {"machine-1": 2, "machine-2": 3}  # and how many workers each runs
JOB_TYPES = {"comfyui": 9.0, "upscale": 5.0, "transcribe": 7.0, "embed": 2.0}  # usual seconds
FAULTS: list[dict[str, Any]] = [
    {"error": "CUDA out of memory. Tried to allocate 2.50 GiB"},
    {"error": "sd_xl_base_1.0.safetensors: checksum does not match"},
    {"error": "model store answered 503 Service Unavailable", "fails": 1},
]
STEPS = 20  # reports of progress per attempt
MAX_ATTEMPTS = 3
MAX_JOBS = 1000


class Task(msgspec.Struct):
    """A job's payload."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=600)] = 3.0
    error: str | None = None
    fails: int = MAX_ATTEMPTS


class Job(msgspec.Struct):
    id: str
    priority: int
    task: Task
    status: events.JobStatus = "pending"
    attempts: int = 0


class AttemptFailed(Exception):
    """A job failed; it may be tried again."""


class JobQueue:
    """A queue, its machines and their workers, which broadcast whatever happens to them."""

    def __init__(self, broadcaster: EventBroadcaster, *, simulation: bool) -> None:
        self.broadcast = broadcaster.broadcast
        self.now_ms = broadcaster.clock.now_ms
        self.simulation = simulation
        self.jobs: dict[str, Job] = {}  # those that have not ended
        self.ended = {"completed": 0, "failed": 0, "cancelled": 0}
        self.queue: asyncio.PriorityQueue[tuple[int, int, Job]] = asyncio.PriorityQueue()
        self.queued = 0
        self.workers: dict[str, str] = {}  # id -> status

    def submit(self, command: SubmitJob, principal: Principal) -> str:
        """The hook that serve() calls for a `submit_job`."""
        if len(self.jobs) >= MAX_JOBS:
            raise HookRefusal("the queue is full", "rate_limited")
        try:
            task = msgspec.convert(command.payload or {}, Task)
        except msgspec.ValidationError as error:
            raise HookRefusal(f"payload: {error}", "invalid_field") from None
        job = Job(f"job-{uuid4().hex[:8]}", command.priority, task)
        described = msgspec.structs.asdict(command)
        del described["message_id"]
        data = events.JobData(id=job.id, created_at=self.now_ms(), **described)
        self.broadcast(events.JobSubmitted(job_id=job.id, job_data=data))
        self.jobs[job.id] = job
        self.enqueue(job)
        return job.id

    def cancel(self, job_id: str, principal: Principal) -> None:
        """The hook that serve() calls for a `cancel_job`."""
        if (job := self.jobs.get(job_id)) is None:
            raise HookRefusal("no such job, or it has ended", "not_found")
        self.change(job, "cancelled")
        self.end(job)  # who has it in hand sees that at the next step

    def enqueue(self, job: Job) -> None:
        self.queued += 1  # among equal priorities, first come, first served
        self.queue.put_nowait((-job.priority, self.queued, job))

    def change(self, job: Job, new: events.JobStatus) -> None:
        old, job.status = job.status, new
        self.broadcast(events.JobStatusChanged(job_id=job.id, old_status=old, new_status=new))

    def end(self, job: Job) -> None:
        self.ended[job.status] += 1
        del self.jobs[job.id]

    async def attempt(self, job: Job, worker: str) -> None:
        task = job.task
        job.attempts += 1
        job.status = "assigned"
        self.broadcast(events.JobAssigned(job_id=job.id, worker_id=worker))
        self.change(job, "in_progress")
        for step in range(1, STEPS + 1):
            await asyncio.sleep(task.seconds / STEPS)
            if job.id not in self.jobs:
                return  # cancelled
            if task.error and job.attempts <= task.fails and step > STEPS / 2:
                raise AttemptFailed(task.error)
            done = step / STEPS
            self.broadcast(events.JobProgress(job_id=job.id, worker_id=worker, progress=done))
        result = {"url": f"https://storage.example/{job.id}.png", "attempts": job.attempts}
        job.status = "completed"
        self.broadcast(events.JobCompleted(job_id=job.id, worker_id=worker, result=result))
        self.end(job)

    async def work_once(self, worker: str) -> None:
        _, _, job = await self.queue.get()
        if job.id not in self.jobs:
            return  # cancelled while it waited
        self.set_worker(worker, "busy", job.id)
        try:
            await self.attempt(job, worker)
        except AttemptFailed as failed:
            if job.attempts < MAX_ATTEMPTS:
                self.change(job, "pending")
                self.enqueue(job)
            else:
                job.status = "failed"
                error = str(failed)
                self.broadcast(events.JobFailed(job_id=job.id, worker_id=worker, error=error))
                self.end(job)
        self.set_worker(worker, "idle")

    def set_worker(self, worker: str, new: str, job_id: str | UnsetType = UNSET) -> None:
        old, self.workers[worker] = self.workers[worker], new
        change = events.WorkerStatusChanged(
            worker_id=worker, old_status=old, new_status=new, current_job_id=job_id
        )
        self.broadcast(change)

    async def run_worker(self, worker: str, machine: str) -> NoReturn:
        """Take job after job; in the simulation, go away at times and come back."""
        able = {"gpu_count": 1, "gpu_model": "NVIDIA RTX 4090", "services": list(JOB_TYPES)}
        while True:
            self.workers[worker] = "idle"
            now = self.now_ms()
            data = events.WorkerData(id=worker, status="idle", capabilities=able, connected_at=now)
            up = events.WorkerConnected(worker_id=worker, machine_id=machine, worker_data=data)
            self.broadcast(up)
            leaving = False
            while not leaving:
                await self.work_once(worker)
                leaving = self.simulation and random.random() < 0.05
            del self.workers[worker]
            self.broadcast(events.WorkerDisconnected(worker_id=worker, machine_id=machine))
            await asyncio.sleep(random.uniform(3, 8))

    async def run_machine(self, machine: str, workers: int) -> None:
        """Start up, step by step, and run workers."""
        began, elapsed = self.now_ms(), 0
        self.broadcast(events.MachineStartup(machine_id=machine, phase="starting"))
        for name in ("mount_models", "start_comfyui", "warm_up_gpus"):
            await asyncio.sleep(random.uniform(0.1, 0.5))
            elapsed = self.now_ms() - began
            step = events.MachineStartupStep(
                machine_id=machine, step_name=name, step_phase="ai_services", elapsed_ms=elapsed
            )
            self.broadcast(step)
        up = events.MachineStartupComplete(
            machine_id=machine, total_startup_time_ms=elapsed, worker_count=workers
        )
        self.broadcast(up)
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, workers + 1):
                tasks.create_task(self.run_worker(f"{machine}-worker-{number}", machine))
            while True:
                load = {"cpu_percent": random.randint(20, 80)}
                self.broadcast(events.MachineUpdate(machine_id=machine, status_data=load))
                await asyncio.sleep(2)

    async def report_stats(self) -> NoReturn:
        while True:
            pending = sum(job.status == "pending" for job in self.jobs.values())
            counts = events.SystemCounts(
                total_workers=len(self.workers),
                active_workers=sum(status == "busy" for status in self.workers.values()),
                total_jobs=len(self.jobs) + sum(self.ended.values()),
                pending_jobs=pending,
                active_jobs=len(self.jobs) - pending,
                completed_jobs=self.ended["completed"],
                failed_jobs=self.ended["failed"],
            )
            self.broadcast(events.SystemStats(stats=counts))
            await asyncio.sleep(3)

    async def simulate(self) -> NoReturn:
        """Submit jobs, about as many as the workers can do."""
        while True:
            job_type, seconds = random.choice(list(JOB_TYPES.items()))
            payload = {"seconds": round(seconds * random.uniform(0.5, 1.5), 1)}
            if random.random() < 0.15:
                payload |= random.choice(FAULTS)
            job = SubmitJob(job_type=job_type, priority=random.randint(1, 10), payload=payload)
            self.submit(job, Principal(id="simulation"))
            await asyncio.sleep(random.expovariate(0.6))

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for machine, workers in MACHINES.items():
                tasks.create_task(self.run_machine(machine, workers))
            tasks.create_task(self.report_stats())
            if self.simulation:
                tasks.create_task(self.simulate())


async def main(arguments: argparse.Namespace) -> None:
    this, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(this.cancel))
    host, token = arguments.host, arguments.token
    broadcaster = EventBroadcaster()
    queue = JobQueue(broadcaster, simulation=arguments.simulation)
    async with serve(
        broadcaster,
        host,
        arguments.port,
        authenticate=StaticTokens({token: "operator"}) if token else None,
        authorize=lambda principal, action, job_id: True,  # whoever is let in sees every job
        submit=queue.submit,
        cancel=queue.cancel,
        dashboard=True,
    ) as server:
        address = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
        print(f"Dashboard: http://{address}/")
        print(f"Monitor:   ws://{address}/ws/monitor/monitor-1")
        print(f"Client:    ws://{address}/ws/client/client-1", flush=True)
        if token:
            print("Append #token=… to the first, ?token=… to the others.", flush=True)
        await queue.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A job queue with a live dashboard.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=3331, help="0 takes a free one")
    parser.add_argument("--token", help="without one, everybody on this machine is let in")
    parser.add_argument("--no-simulation", dest="simulation", action="store_false")
    try:
        asyncio.run(main(parser.parse_args()))
    except asyncio.CancelledError:
        pass  # it was asked to end, and has closed
    except (InvalidArgument, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
