"""Several nodes on one real Redis: one order, resumption across nodes, states from the stream."""

import asyncio
from typing import Any

import pytest

from jobqueue_broadcast import JobCompleted, JobData, JobProgress, JobSubmitted, Principal
from jobqueue_broadcast.backplane.redis import AsyncPublisher, Publisher
from jobqueue_broadcast.errors import BackplaneFull, InvalidArgument
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.session import Hooks, Session, SessionLimits
from jobqueue_broadcast.testing import RecordingConnection
from tests.backplane.cluster import Node, cluster, node, until
from tests.backplane.servers import RedisServer

pytestmark = pytest.mark.redis


def progress(job: str, number: int, of: int = 1000) -> JobProgress:
    return JobProgress(job_id=job, worker_id="w", progress=number / of)


def test_all_nodes_deliver_in_one_order(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 3) as nodes:
            for number in range(200):
                for at, one in enumerate(nodes):
                    one.broadcaster.broadcast(progress(f"job-{at}", number))
                await asyncio.sleep(0)
            await until(lambda: all(len(one.order()) == 600 for one in nodes))
            orders = [one.order() for one in nodes]
            assert orders[0] == orders[1] == orders[2]
            for at in range(3):
                own = [value for job, value in orders[0] if job == f"job-{at}"]
                assert own == sorted(own)
            positions = [[f["position"] for f in one.frames if "job_id" in f] for one in nodes]
            assert positions[0] == positions[1] == positions[2]
            print("\n3 nodes, 600 events: order equal on all nodes, positions equal")

    asyncio.run(scenario())


def test_a_peer_resumes_on_another_node(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as (one, two):
            for number in range(100):
                one.broadcaster.broadcast(progress("job", number))
            await until(lambda: len(one.order()) == 100 and len(two.order()) == 100)
            position = Position.parse(one.told("update_job_progress")[49]["position"])
            late = RecordingConnection()
            two.broadcaster.add_monitor("late", late, resume=position)
            shown = [f["progress"] for f in late.frames if f["type"] == "update_job_progress"]
            assert shown == [number / 1000 for number in range(50, 100)]
            assert not [f for f in late.frames if f["type"] == "resync_required"]

    asyncio.run(scenario())


def test_a_position_ahead_of_this_node_is_waited_for(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as (one, two):
            await until(lambda: two.broadcaster.history.epoch)
            epoch = two.broadcaster.history.epoch
            assert two.broadcaster.reach("new") is None
            assert two.broadcaster.reach(Position(epoch, 0)) is None
            one.broadcaster.broadcast(progress("job", 1))
            await until(lambda: one.told("update_job_progress"))
            position = Position.parse(one.told("update_job_progress")[0]["position"])
            waiting = two.broadcaster.reach(position)
            assert waiting is None or await waiting
            assert two.broadcaster.history.head == position.sequence
            assert not await two.backplane.reach(position.sequence + 1, within=0.01)

    asyncio.run(scenario())


def test_a_new_node_builds_its_states_from_the_stream(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with node(redis_server.url) as one:
            one.broadcaster.broadcast(JobCompleted(job_id="done", worker_id="w", result={"n": 1}))
            one.broadcaster.broadcast(progress("running", 500))
            await until(lambda: len(one.order()) == 2)
            position = one.told("complete_job")[0]["position"]
            async with node(redis_server.url) as two:
                assert two.order() == []  # what was before is state, not news
                client = RecordingConnection()
                two.broadcaster.add_client("c", client)
                two.broadcaster.subscribe_client_to_job("c", "done")
                two.broadcaster.subscribe_client_to_job("c", "running")
                assert [f["type"] for f in client.frames] == [
                    "connection_established",
                    "complete_job",
                    "update_job_progress",
                ]
                late = RecordingConnection()
                two.broadcaster.add_monitor("m", late, resume=Position.parse(position))
                assert [f["type"] for f in late.frames] == ["connected", "update_job_progress"]

    asyncio.run(scenario())


def test_a_result_can_be_looked_up_after_trimming(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with node(redis_server.url, retained=50) as one:
            submitted = JobSubmitted(
                job_id="old", job_data=JobData(id="old", job_type="t", created_at=1)
            )
            one.broadcaster.broadcast(submitted)
            one.broadcaster.broadcast(JobCompleted(job_id="old", worker_id="w", result=7))
            for number in range(200):
                one.broadcaster.broadcast(progress("noise", number))
                await until(lambda: len(one.order()) == number + 3)  # noqa: B023
            async with node(redis_server.url, retained=50) as two:
                assert two.broadcaster.job("old") is None
                found = two.broadcaster.look_up("old")
                assert found is not None
                for payload in await found():
                    two.broadcaster.intake.recall(payload)
                info = two.broadcaster.job("old")
                assert info is not None
                assert (info.status, info.result) == ("completed", 7)
                assert two.broadcaster.look_up("old") is None
                unknown = two.broadcaster.look_up("never")
                assert unknown is not None
                assert await unknown() == []

    asyncio.run(scenario())


def test_who_resumes_is_told_of_a_job_that_ended_while_the_node_was_built(
    redis_server: RedisServer,
) -> None:
    async def connect(at: Node, resume: Any) -> RecordingConnection:
        connection = RecordingConnection()
        alice = Principal(id="alice")
        grant = await at.broadcaster.prepare("client", "c", alice, resume)
        at.broadcaster.add_client("c", connection, principal=alice, resume=resume, grant=grant)
        return connection

    async def scenario() -> None:
        async with node(redis_server.url) as one:
            before = await connect(one, "new")
            one.broadcaster.subscribe_client_to_job("c", "job")
            one.broadcaster.broadcast(progress("job", 1))
            await until(lambda: len(before.frames) == 2)
            position = Position.parse(before.frames[-1]["position"])
            two = Node(redis_server.url)
            unfinished = two.broadcaster.intake.unfinished

            def meanwhile() -> list[str]:
                # The stream was read, and what is kept of unfinished jobs is about to be.
                with Publisher(redis_server.url) as publisher:
                    publisher.publish(JobCompleted(job_id="job", worker_id="w"))
                return unfinished()

            two.broadcaster.intake.unfinished = meanwhile  # type: ignore[method-assign]
            async with two.backplane:
                await until(lambda: two.backplane.ready)
                after = await connect(two, position)
                types = [frame["type"] for frame in after.frames]
                assert types == ["connection_established", "complete_job"]

    asyncio.run(scenario())


def test_an_accepted_job_belongs_to_its_principal_on_every_node(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as (one, two):
            one.broadcaster.accept_job("job", Principal(id="alice"))
            await until(lambda: (s := two.broadcaster.jobs.get("job")) and s.owner == "alice")
            client = RecordingConnection()
            alice = Principal(id="alice")
            two.broadcaster.add_client("c", client, principal=alice)
            one.broadcaster.revoke(alice)
            await until(lambda: client.closed)
            assert client.closed is not None
            assert client.closed[0] == 4401

    asyncio.run(scenario())


def test_a_revocation_outlives_the_stream(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with node(redis_server.url) as one:
            one.broadcaster.revoke("mallory")
            await until(
                lambda: one.backplane.stats().not_back == 0 < one.backplane.stats().read_total
            )
            with redis_server.client() as client:
                client.xtrim(one.backplane.keys.events, maxlen=0)
            async with node(redis_server.url) as two:
                assert two.broadcaster.is_revoked(Principal(id="mallory"))
                assert not two.broadcaster.is_revoked(Principal(id="alice"))

    asyncio.run(scenario())


def test_a_client_asks_for_a_job_that_was_trimmed(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with node(redis_server.url) as one:
            one.broadcaster.accept_job("old", Principal(id="alice"))
            one.broadcaster.broadcast(JobCompleted(job_id="old", worker_id="w", result=7))
            await until(lambda: one.order())
            with redis_server.client() as client:
                client.xtrim(one.backplane.keys.events, maxlen=0)
            async with node(redis_server.url) as two:
                for name, wanted in (("alice", ["job_accepted", "complete_job"]), ("eve", [])):
                    connection = RecordingConnection()
                    subscriber = two.broadcaster.add_client(
                        name, connection, principal=Principal(id=name)
                    )
                    session = Session(two.broadcaster, subscriber, Hooks(), SessionLimits())
                    connection.take()
                    ask = session.receive('{"type":"subscribe_progress","job_id":"old"}')
                    while ask is not None:
                        ask = ask.answered(await ask.call())
                    types = [frame["type"] for frame in connection.take()]
                    assert types == (["subscribed", *wanted] if wanted else ["error"])

    asyncio.run(scenario())


def test_publish_is_bounded_and_says_so(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        made = Node(redis_server.url, queue_limit=10)
        for number in range(10):
            made.broadcaster.broadcast(progress("job", number))
        with pytest.raises(BackplaneFull, match="10 payloads"):
            made.broadcaster.broadcast(progress("job", 11))
        assert not made.backplane.ready
        assert made.backplane.stats().waiting == 10
        async with made.backplane:
            await until(lambda: len(made.order()) == 10)
            assert made.backplane.stats().waiting == 0

    asyncio.run(scenario())


def test_a_worker_publishes_to_all_nodes(redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with cluster(redis_server.url, 2) as nodes:
            async with AsyncPublisher(redis_server.url) as publisher:
                await publisher.publish(progress("job", 1))
                await publisher.publish(JobCompleted(job_id="job", worker_id="w"))
            await until(lambda: all(len(one.order()) == 2 for one in nodes))
            assert nodes[0].order() == nodes[1].order()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "limits", [{"retained": 0}, {"job_ttl": 0}, {"queue_limit": 0}, {"block": 0}, {"timeout": -1}]
)
def test_limits_that_cannot_be_right_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Node("redis://localhost", **limits)


def test_run_needs_a_broadcaster() -> None:
    from jobqueue_broadcast.backplane.redis import RedisBackplane

    with pytest.raises(InvalidArgument, match="EventBroadcaster"):
        asyncio.run(RedisBackplane("redis://localhost").run())
