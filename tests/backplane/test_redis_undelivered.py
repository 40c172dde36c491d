"""An outcome that nobody took is reported by one node of all, and by none where somebody did."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from jobqueue_broadcast import JobCompleted, JobEvent
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.backplane.cluster import Node, node, until
from tests.backplane.servers import Proxy, RedisServer

pytestmark = pytest.mark.redis


class Reporting:
    """Nodes that note what is reported to their hosts, and a clock for all."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.nodes: list[Node] = []
        self.reported: list[str] = []

    def hook(self, event: JobEvent) -> None:
        self.reported.append(event.job_id)

    @asynccontextmanager
    async def running(self, *urls: str) -> AsyncIterator[list[Node]]:
        options = {"clock": self.clock, "on_undelivered": self.hook, "undelivered_after": 30}
        async with AsyncExitStack() as stack:
            for url in urls:
                self.nodes.append(await stack.enter_async_context(node(url, broadcaster=options)))
            yield self.nodes

    async def broadcast(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self.nodes[0].broadcaster.broadcast(JobCompleted(job_id=job_id, worker_id="w"))
        await until(lambda: all(len(n.told("complete_job")) == len(job_ids) for n in self.nodes))

    async def pass_time(self) -> None:
        """Let the outcomes' time, and that of the other nodes, pass on all nodes."""
        for seconds in (30, 5):
            self.clock.advance(seconds)
            for each in self.nodes:
                each.broadcaster.tick()
            # In order with what was asked: once this is answered, so is that.
            for each in self.nodes:
                await each.backplane.claim("monitor", "after all that", "nobody")


def follow(one: Node, client_id: str, job_id: str) -> RecordingConnection:
    connection = RecordingConnection()
    one.broadcaster.add_client(client_id, connection)
    one.broadcaster.subscribe_client_to_job(client_id, job_id)
    return connection


def test_one_of_all_nodes_reports(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        test = Reporting()
        async with test.running(*[redis_server.url] * 3) as (_, two, three):
            follow(two, "c", "taken at once")
            away = follow(two, "d", "taken elsewhere later")
            two.broadcaster.remove_client("d", away)
            await test.broadcast("taken at once", "taken elsewhere later", "a", "b", "c")
            follow(three, "d", "taken elsewhere later")
            await test.pass_time()
            await test.pass_time()
            assert sorted(test.reported) == ["a", "b", "c"]
            print("\nundelivered over 3 nodes: 3 of 5 outcomes not taken, each reported once")

    asyncio.run(scenario())


def test_a_node_that_starts_reports_what_the_others_did_not_live_to(
    redis_server: RedisServer,
) -> None:
    async def scenario() -> None:
        before, after = Reporting(), Reporting()
        async with before.running(redis_server.url) as (one,):
            follow(one, "c", "taken")
            await before.broadcast("taken", "not taken")
        async with after.running(redis_server.url):
            await after.pass_time()
            assert after.reported == ["not taken"]
        assert before.reported == []

    asyncio.run(scenario())


def test_without_redis_each_node_reports(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        test = Reporting()
        async with (
            Proxy(redis_server.port) as proxy,
            test.running(proxy.url, redis_server.url) as (one, two),
        ):
            await test.broadcast("a")
            test.clock.advance(30)
            for each in (one, two):
                each.broadcaster.tick()
            proxy.hold()
            test.clock.advance(5)
            two.broadcaster.tick()
            one.broadcaster.tick()
            await until(lambda: test.reported == ["a", "a"])
            proxy.release()

    asyncio.run(scenario())
