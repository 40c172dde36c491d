"""R12 with real processes: Redis killed, a node killed, a node frozen; and the full figures."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobqueue_broadcast import JobCompleted
from jobqueue_broadcast.backplane.redis import Publisher
from tests.backplane.cluster import DEFAULTS
from tests.backplane.servers import RedisServer

pytestmark = pytest.mark.redis

ROOT = Path(__file__).parents[2]

Process = subprocess.Popen[str]


class Processes:
    """The node and worker processes of one test."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url
        self.options = json.dumps(options)
        self.all: list[Process] = []

    def start(self, module: str, *arguments: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.backplane.{module}", self.url, *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        self.all.append(process)
        return process

    def node(self) -> Process:
        process = self.start("node_process", self.options)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def worker(self, name: str, jobs: int, pause: float) -> Process:
        return self.start("worker_process", name, str(jobs), str(pause))


@contextmanager
def processes(url: str, **options: Any) -> Iterator[Processes]:
    made = Processes(url, options)
    try:
        yield made
    finally:
        for process in made.all:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


def what_it_saw(process: Process) -> dict[str, Any]:
    assert process.stdout is not None
    seen: dict[str, Any] = json.loads(process.stdout.readline())
    assert process.wait() == 0
    return seen


def play(
    redis: RedisServer, *, jobs: int, pause: float, away: float, frozen: float, **options: Any
) -> None:
    wanted = sorted([*(f"{name}-{n}" for name in "ab" for n in range(jobs)), "end"])
    with processes(redis.url, **options) as started:
        steady, freezing, dying = (started.node() for _ in range(3))
        workers = [started.worker(name, jobs, pause) for name in "ab"]
        time.sleep(0.2)
        dying.kill()
        redis.kill()
        time.sleep(away)
        redis.start()
        freezing.send_signal(signal.SIGSTOP)
        late = started.node()
        time.sleep(frozen)
        freezing.send_signal(signal.SIGCONT)
        assert [worker.wait() for worker in workers] == [0, 0]
        with Publisher(redis.url) as publisher:
            publisher.publish(JobCompleted(job_id="end", worker_id="w"))
        seen = [what_it_saw(process) for process in (steady, freezing, late)]
    lost = sum(len(set(wanted) - set(one["completed"])) for one in seen)
    twice = sum(one["twice"] for one in seen)
    print(
        f"\nR12 processes: redis killed and away {away:g} s, one node killed, one frozen"
        f" {frozen:g} s: {len(wanted)} outcomes, lost {lost}, duplicates shown {twice},"
        f" events {[one['events'] for one in seen]}, outages {[one['outages'] for one in seen]},"
        f" gaps {[one['gaps'] for one in seen]}"
    )
    assert lost == 0
    assert twice == 0
    assert len({(one["epoch"], one["digest"]) for one in seen}) == 1


def test_killed_and_frozen(own_redis: RedisServer) -> None:
    play(own_redis, jobs=150, pause=0.005, away=0.3, frozen=1.0)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_killed_and_frozen_for_a_minute(own_redis: RedisServer) -> None:
    play(own_redis, jobs=2000, pause=0.04, away=30.0, frozen=60.0, **DEFAULTS)
