"""Publishing from worker processes: threads, forks, outages, and no server half."""

import asyncio
import os
import subprocess
import sys
import threading
from collections import Counter

import pytest

from jobqueue_broadcast import JobCompleted, JobProgress
from jobqueue_broadcast.backplane.redis import AsyncPublisher, Publisher
from jobqueue_broadcast.errors import BackplaneUnavailable, InvalidArgument
from tests.backplane.cluster import cluster, node, until
from tests.backplane.servers import Proxy, RedisServer, free_port

pytestmark = pytest.mark.redis


def progress(job: str, number: int) -> JobProgress:
    return JobProgress(job_id=job, worker_id="w", progress=number / 1000)


def test_from_threads(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as nodes:
            with Publisher(redis_server.url) as publisher:

                def work(name: str) -> None:
                    for number in range(100):
                        publisher.publish(progress(name, number))

                threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
                for thread in threads:
                    thread.start()
                await until(lambda: all(len(one.order()) == 800 for one in nodes))
                for thread in threads:
                    await asyncio.to_thread(thread.join)
            assert nodes[0].order() == nodes[1].order()
            for name in (f"t{n}" for n in range(8)):
                own = [value for job, value in nodes[0].order() if job == name]
                assert own == [number / 1000 for number in range(100)]
            print("\npublisher: 8 threads × 100: lost 0, twice 0, each thread in order")

    asyncio.run(scenario())


def test_after_a_fork(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with node(redis_server.url) as one:
            with Publisher(redis_server.url) as publisher:
                publisher.publish(progress("parent", 1))
                program = (
                    "import os\n"
                    "from jobqueue_broadcast import JobProgress\n"
                    "from jobqueue_broadcast.backplane.redis import Publisher\n"
                    f"p = Publisher({redis_server.url!r})\n"
                    "send = lambda who, n: p.publish("
                    "JobProgress(job_id=who, worker_id='w', progress=n / 100))\n"
                    "send('before', 0)\n"
                    "children = []\n"
                    "for _ in range(3):\n"
                    "    if pid := os.fork(): children.append(pid); continue\n"
                    "    for n in range(50): send(f'child-{os.getpid()}', n)\n"
                    "    os._exit(0)\n"
                    "for n in range(50): send('forker', n)\n"
                    "assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)\n"
                )
                await asyncio.to_thread(run, program)
            await until(lambda: len(one.order()) == 202)
            assert max(Counter(one.order()).values()) == 1
            assert one.backplane.stats().repeats_total == 0
            print("\npublisher: 3 forks × 50: lost 0, twice 0")

    asyncio.run(scenario())


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_no_server() -> None:
    loaded = run(
        "import sys, jobqueue_broadcast.backplane.redis.publisher\n"
        "print(*(m for m in sys.modules if m.partition('.')[0] in ('websockets', 'anyio')))"
    )
    assert loaded.strip() == ""


def test_an_outage_is_waited_out(own_redis: RedisServer) -> None:
    async def scenario() -> None:
        async with node(own_redis.url) as one:
            with Publisher(own_redis.url, timeout=0.5, patience=20) as publisher:
                publisher.publish(progress("job", 1))
                own_redis.kill()
                sending = asyncio.create_task(
                    asyncio.to_thread(publisher.publish, JobCompleted(job_id="job", worker_id="w"))
                )
                await until(lambda: not one.backplane.ready)
                await asyncio.to_thread(own_redis.start)
                await sending
            async with AsyncPublisher(own_redis.url, timeout=0.5, patience=20) as publisher:
                await publisher.publish(progress("second", 1))
                own_redis.kill()
                again = asyncio.create_task(publisher.publish(progress("second", 2)))
                await asyncio.sleep(0.1)
                await asyncio.to_thread(own_redis.start)
                await again
            await until(lambda: len(one.order()) == 4)
            assert max(Counter(one.order()).values()) == 1

    asyncio.run(scenario())


def test_an_answer_that_was_lost_is_no_second_event(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with Proxy(redis_server.port) as proxy, node(redis_server.url) as one:
            async with AsyncPublisher(proxy.url, timeout=0.2, patience=20) as publisher:
                await publisher.publish(progress("job", 1))
                proxy.hold_answers()
                sending = asyncio.create_task(publisher.publish(progress("job", 2)))
                await until(lambda: len(one.order()) == 2)
                proxy.cut()
                proxy.release()
                await sending
            await until(lambda: one.backplane.stats().repeats_total == 1)
            assert one.order() == [("job", 0.001), ("job", 0.002)]

    asyncio.run(scenario())


def test_no_redis_at_all() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    publisher = Publisher(url, timeout=0.1, patience=0.1)
    with publisher, pytest.raises(BackplaneUnavailable, match=r"not published.*within 0.1 s"):
        publisher.publish(progress("job", 1))

    async def scenario() -> None:
        async with AsyncPublisher(url, timeout=0.1, patience=0.1) as publisher:
            with pytest.raises(BackplaneUnavailable, match="not published"):
                await publisher.publish(progress("job", 1))

    asyncio.run(scenario())


def test_what_broadcast_refuses_is_refused(redis_server: RedisServer) -> None:
    with Publisher(redis_server.url) as publisher:
        with pytest.raises(InvalidArgument, match="expected an Event"):
            publisher.publish({"type": "complete_job"})  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="JSON"):
            publisher.publish(JobCompleted(job_id="j", worker_id="w", result=object()))


def test_in_one_step_with_what_the_program_does_itself(redis_server: RedisServer) -> None:
    done = JobCompleted(job_id="job", worker_id="w")

    async def scenario() -> None:
        async with node(redis_server.url) as one:
            with Publisher(redis_server.url) as publisher, redis_server.client() as client:
                publisher.commands(progress("job", 1))  # never carried out
                for commands in (
                    publisher.commands(done),
                    AsyncPublisher(redis_server.url).commands(done),
                ):
                    assert not one.order()
                    for _ in range(2):  # as after an answer that was lost
                        with client.pipeline(transaction=True) as step:
                            step.incr("own")
                            for command in commands:
                                step.execute_command(*command)
                            step.execute()
                    publisher.publish(progress("next", 2))
                    await until(lambda: one.order()[-1:] == [("next", 0.002)])
                    assert one.order() == [("job", "complete_job"), ("next", 0.002)]
                    one.monitor.take()
                assert client.get("own") == b"4"
                with pytest.raises(InvalidArgument, match="expected an Event, got str"):
                    publisher.commands("done")  # type: ignore[arg-type]

    asyncio.run(scenario())
