"""What holds in one process holds over two: real WebSockets to two servers behind one Redis."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from jobqueue_broadcast import EventBroadcaster, JobCompleted, JobProgress, StaticTokens
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.backplane.redis import AsyncPublisher, RedisBackplane
from tests.adapters.raw import in_loop, until
from tests.backplane.servers import RedisServer
from tests.e2e.peers import Frame, Host, Peer, peer

pytestmark = pytest.mark.redis

TOKENS = {"a-token": "alice", "e-token": "eve"}
ALICE, EVE = TOKENS


class Server:
    """A server, its queue, and its port."""

    def __init__(self, url: str) -> None:
        self.broadcaster = EventBroadcaster(backplane=RedisBackplane(url))
        self.host = Host(self.broadcaster)
        self.port = 0


@asynccontextmanager
async def served(url: str) -> AsyncIterator[Server]:
    made = Server(url)
    tokens = StaticTokens(TOKENS)
    async with serve(
        made.broadcaster, "localhost", 0,
        authenticate=tokens, submit=made.host.submit, cancel=made.host.cancel,
    ) as server:  # fmt: skip
        made.port = server.port
        yield made


@asynccontextmanager
async def two_servers(url: str) -> AsyncIterator[tuple[Server, Server]]:
    async with served(url) as one, served(url) as two:
        # One queue behind both: what was submitted at one can be cancelled at the other.
        two.host.submitted = one.host.submitted
        yield one, two


async def submitted(client: Peer) -> str:
    """Submit a job, and return its id."""
    await client.send("submit_job", job_type="render")
    job_id: str = (await client.until(type="job_accepted"))["job_id"]
    return job_id


async def refused(server: Server, path: str, token: str) -> int:
    """Connect, be turned away, and return the status."""
    with pytest.raises(InvalidStatus) as turned_away:
        async with peer(server.port, path, token=token):
            pass
    return turned_away.value.response.status_code


def drop(client: Peer) -> None:
    """Break a connection as a network does: without a word."""
    client.websocket.transport.abort()


async def publish(url: str, job_id: str, count: int) -> None:
    """Be a worker that does a job."""
    async with AsyncPublisher(url) as publisher:
        for number in range(count):
            progress = number / count
            event = JobProgress(job_id=job_id, worker_id="w", progress=progress)
            await publisher.publish(event)
            await asyncio.sleep(0.002)
        await publisher.publish(JobCompleted(job_id=job_id, worker_id="w", result=count))


@in_loop
async def test_a_client_goes_from_server_to_server_and_misses_nothing(
    redis_server: RedisServer,
) -> None:
    count, hops = 600, 0
    choice = random.Random(6)
    shown: list[Frame] = []
    async with two_servers(redis_server.url) as servers:
        async with peer(servers[0].port, "/ws/client/c?resume=new", token=ALICE) as client:
            job_id = await submitted(client)
            shown += client.frames
            position = client.frames[-1]["position"]
            worker = asyncio.create_task(publish(redis_server.url, job_id, count))
            drop(client)
        while shown[-1]["type"] != "complete_job":
            hops += 1
            path = f"/ws/client/c?resume={position}"
            async with peer(servers[hops % 2].port, path, token=ALICE) as client:
                await client.until(type="connection_established")
                for _ in range(choice.randint(1, 60)):
                    shown.append(await client.next())
                    position = shown[-1]["position"]
                    if shown[-1]["type"] == "complete_job":
                        break
                drop(client)
        await worker
        types = [frame["type"] for frame in shown]
        progress = [frame["progress"] for frame in shown if "progress" in frame]
        assert progress == [number / count for number in range(count)]
        assert types.count("complete_job") == types.count("job_accepted") == 1
        assert "resync_required" not in types
        print(f"\n{hops} hops between two servers: {count} progress, lost 0, twice 0, in order")
        assert hops >= 10


@in_loop
async def test_a_job_belongs_to_its_principal_at_either_server(redis_server: RedisServer) -> None:
    async with (
        two_servers(redis_server.url) as (one, two),
        peer(one.port, "/ws/client/here", token=ALICE) as here,
        peer(two.port, "/ws/client/there", token=ALICE) as there,
        peer(two.port, "/ws/client/eve", token=EVE) as eve,
    ):
        job_id = await submitted(here)
        await there.send("subscribe_progress", job_id=job_id)
        await there.until(type="subscribed")
        for command in ("subscribe_progress", "get_job_status", "cancel_job"):
            answers = []
            for asked in (job_id, "job-999"):
                await eve.send(command, job_id=asked, message_id="m")
                answer = await eve.until(type="error")
                del answer["timestamp"]
                answers.append({**answer, "error": answer["error"].replace(asked, "…")})
            assert answers[0] == answers[1]
            assert answers[0]["code"] == "not_found"
        assert not two.host.cancelled

        one.host.progress(job_id, "w", 0.5)
        assert (await there.until(type="update_job_progress"))["progress"] == 0.5
        await there.send("cancel_job", job_id=job_id)
        for client in (here, there):
            changed = await client.until(type="job_status_changed")
            assert (changed["job_id"], changed["status"]) == (job_id, "cancelled")
        assert [principal.id for _, principal in two.host.cancelled] == ["alice"]
        assert not [frame for frame in eve.frames if frame.get("status") == "cancelled"]


@in_loop
async def test_a_token_revoked_at_one_server_is_good_at_neither(redis_server: RedisServer) -> None:
    async with (
        two_servers(redis_server.url) as (one, two),
        peer(two.port, "/ws/client/c?resume=new", token=ALICE) as client,
        peer(two.port, "/ws/monitor/m", token=ALICE) as monitor,
        peer(two.port, "/ws/client/eve", token=EVE) as eve,
    ):
        greeting = await client.next()
        began = time.monotonic()
        one.broadcaster.revoke("alice")
        assert await client.closed() == await monitor.closed() == 4401
        took = time.monotonic() - began
        print(f"\nrevoked at one server, closed at the other after {took * 1000:.0f} ms")
        assert took < 1
        for server in (one, two):
            path = f"/ws/client/c?resume={greeting['position']}"
            assert await refused(server, path, ALICE) == 401
        await submitted(eve)

        two.broadcaster.unrevoke("alice")
        await until(lambda: not any(s.broadcaster.stats().revoked for s in (one, two)))
        async with peer(one.port, "/ws/client/c", token=ALICE) as again:
            await again.until(type="connection_established")


@pytest.mark.parametrize("kind", ["client", "monitor"])
@in_loop
async def test_an_id_has_one_connection_over_both_servers(
    redis_server: RedisServer, kind: str
) -> None:
    path = f"/ws/{kind}/same"
    async with (
        two_servers(redis_server.url) as (one, two),
        peer(one.port, path, token=ALICE) as first,
    ):
        await first.next()
        assert await refused(two, path, EVE) == 403
        async with peer(two.port, path, token=ALICE) as second:
            assert await first.closed() == 4409
            await second.next()
            async with peer(one.port, path, token=ALICE) as third:
                assert await second.closed() == 4409
                await third.next()
                assert await refused(one, path, EVE) == 403


@in_loop
async def test_of_many_that_connect_at_once_one_stays(redis_server: RedisServer) -> None:
    rounds, at_once = 20, 6
    headers = {"Authorization": f"Bearer {ALICE}"}
    async with two_servers(redis_server.url) as servers:
        for number in range(rounds):
            connecting = [
                connect(
                    f"ws://localhost:{servers[n % 2].port}/ws/client/r{number}",
                    additional_headers=headers,
                )
                for n in range(at_once)
            ]
            clients = await asyncio.gather(*connecting)
            closing = [asyncio.ensure_future(client.wait_closed()) for client in clients]
            await until(lambda: sum(task.done() for task in closing) == at_once - 1)  # noqa: B023
            (left,) = (c for c, task in zip(clients, closing, strict=True) if not task.done())
            assert {c.close_code for c in clients if c is not left} == {4409}
            await left.send('{"type":"heartbeat","timestamp":1,"message_id":"here"}')
            while json.loads(await left.recv()).get("message_id") != "here":
                pass
            held = [s.broadcaster.stats().clients for s in servers]
            assert sum(held) == 1
            await left.close()
            await until(lambda: not any(s.broadcaster.stats().clients for s in servers))
    print(f"\nX3 over servers: {rounds} × {at_once} at once under one id, 1 stays each time")
