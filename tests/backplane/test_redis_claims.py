"""What holds in one process holds over several: whose an id is, and what a client follows."""

import asyncio
from typing import Any

import pytest

from jobqueue_broadcast import JobCompleted, JobProgress, Principal
from jobqueue_broadcast.errors import IdTaken
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.testing import RecordingConnection
from tests.backplane.cluster import Node, cluster, node, until
from tests.backplane.servers import Proxy, RedisServer

pytestmark = pytest.mark.redis

ALICE, EVE = Principal(id="alice"), Principal(id="eve")


async def connect(
    one: Node, kind: Any, peer_id: str, principal: Principal = ALICE, resume: Any = None
) -> RecordingConnection:
    connection = RecordingConnection()
    grant = await one.broadcaster.prepare(kind, peer_id, principal, resume)
    add = one.broadcaster.add_client if kind == "client" else one.broadcaster.add_monitor
    add(peer_id, connection, principal=principal, resume=resume, grant=grant)
    return connection


def progress(number: int) -> JobProgress:
    return JobProgress(job_id="job", worker_id="w", progress=number / 100)


@pytest.mark.parametrize("kind", ["client", "monitor"])
def test_the_same_principal_replaces_its_connection(redis_server: RedisServer, kind: str) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as (one, two):
            first = await connect(one, kind, "x")
            second = await connect(two, kind, "x")
            await until(lambda: first.closed)
            assert first.closed is not None
            assert first.closed[0] == 4409
            third = await connect(one, kind, "x")
            await until(lambda: second.closed)
            fourth = await connect(one, kind, "x")
            assert third.closed is not None
            await asyncio.gather(*(each.backplane.flush() for each in (one, two)))
            assert fourth.closed is None

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["client", "monitor"])
def test_another_principal_is_refused(redis_server: RedisServer, kind: str) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as (one, two):
            mine = await connect(one, kind, "x")
            with pytest.raises(IdTaken):
                await connect(two, kind, "x", EVE)
            assert mine.closed is None
            remove = getattr(one.broadcaster, f"remove_{kind}")
            remove("x", mine)
            if kind == "client":  # expected back for a while
                with pytest.raises(IdTaken):
                    await connect(two, kind, "x", EVE)
            else:
                while True:
                    try:
                        await connect(two, kind, "x", EVE)
                        break
                    except IdTaken:
                        await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_two_that_race_are_not_both_let_in(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as (one, two):
            for number in range(20):
                results = await asyncio.gather(
                    connect(one, "client", f"c{number}", ALICE),
                    connect(two, "client", f"c{number}", EVE),
                    return_exceptions=True,
                )
                assert sum(isinstance(result, IdTaken) for result in results) == 1
            pairs = []
            for number in range(20):
                pairs.append(
                    await asyncio.gather(
                        connect(one, "client", f"d{number}"), connect(two, "client", f"d{number}")
                    )
                )
            await until(lambda: all(a.closed or b.closed for a, b in pairs))
            assert not any(a.closed and b.closed for a, b in pairs)
            print("\nX3 over nodes: 20 races of two principals, 1 let in each; 20 of one, 1 stays")

    asyncio.run(scenario())


def test_a_client_goes_on_where_it_was_on_another_node(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as (one, two):
            first = await connect(one, "client", "c", resume="new")
            one.broadcaster.subscribe_client_to_job("c", "job")
            one.broadcaster.subscribe_client_to_job("c", "other")
            one.broadcaster.unsubscribe_client_from_job("c", "other")
            for number in range(10):
                one.broadcaster.broadcast(progress(number))
            await until(lambda: len(first.frames) == 11)
            one.broadcaster.remove_client("c", first)
            for number in range(10, 20):
                one.broadcaster.broadcast(progress(number))
            at = Position.parse(first.frames[7]["position"])  # progress 6: the rest was lost
            second = await connect(two, "client", "c", resume=at)
            two.broadcaster.broadcast(JobCompleted(job_id="job", worker_id="w"))
            await until(lambda: second.frames[-1]["type"] == "complete_job")
            shown = [f["progress"] for f in second.frames if f["type"] == "update_job_progress"]
            assert shown == [number / 100 for number in range(7, 20)]
            assert "resync_required" not in {frame["type"] for frame in second.frames}
            assert two.broadcaster.clients.jobs_of("c") == {"job"}
            await until(lambda: one.broadcaster.clients.away_count == 0)
            third = await connect(one, "client", "c", resume=Position.parse(at_end(second)))
            assert one.broadcaster.clients.jobs_of("c") == {"job"}
            assert [frame["type"] for frame in third.frames] == ["connection_established"]
            print("\nR12 a client moves between nodes: lost 0, twice 0, no resync")

    asyncio.run(scenario())


def at_end(connection: RecordingConnection) -> str:
    position: str = connection.frames[-1]["position"]
    return position


def test_a_node_that_died_took_nothing_with_it(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with node(redis_server.url) as two:
            async with node(redis_server.url) as one:
                first = await connect(one, "client", "c", resume="new")
                one.broadcaster.subscribe_client_to_job("c", "job")
                one.broadcaster.broadcast(progress(1))
                await until(lambda: len(first.frames) == 2)
            second = await connect(two, "client", "c", resume=Position.parse(at_end(first)))
            two.broadcaster.broadcast(progress(2))
            await until(lambda: len(second.frames) == 2)
            assert second.frames[1]["progress"] == 0.02

    asyncio.run(scenario())


def test_without_redis_a_node_decides_alone(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with Proxy(redis_server.port) as proxy, node(proxy.url) as one:
            proxy.hold()
            mine = await connect(one, "client", "c")
            with pytest.raises(IdTaken):
                await connect(one, "client", "c", EVE)
            assert mine.closed is None
            proxy.release()

    asyncio.run(scenario())


def test_a_connection_says_that_it_is_there(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with node(redis_server.url) as one:
            await connect(one, "client", "c")
            with redis_server.client() as client:
                key = f"{one.backplane.keys.prefix}:client:c"
                client.delete(key)
                claims = one.broadcaster._claims
                assert claims is not None
                claims.tick(one.broadcaster.clock.monotonic() + 30)
                claims.tick(one.broadcaster.clock.monotonic() + 61)
                await until(lambda: client.hget(key, "owner") == b"alice")
                assert 0 < client.ttl(key) <= 180

    asyncio.run(scenario())
