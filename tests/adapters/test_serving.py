"""What peers see of a server, over real sockets: the same by every way the adapter can write."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as websockets_serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from jobqueue_broadcast import (
    EventBroadcaster,
    HookRefusal,
    JobAssigned,
    JobCompleted,
    JobProgress,
    Principal,
    SubmitJob,
)
from jobqueue_broadcast.adapters.websockets import BroadcastServer, WebSocketEndpoint, serve
from jobqueue_broadcast.adapters.websockets.connections import (
    BroadcastConnection,
    DirectConnection,
    DocumentedConnection,
)
from jobqueue_broadcast.errors import IdTaken, Replaced
from tests.adapters.raw import Raw, frame, in_loop, request, until

Serve: TypeAlias = Callable[..., BroadcastServer]

WAYS: dict[str, dict[str, Any]] = {
    "direct": {"direct": True, "compression": False},
    "direct-deflate": {"direct": True, "compression": True},
    "documented": {"direct": False, "compression": False},
    "documented-deflate": {"direct": False, "compression": True},
}


@pytest.fixture(params=WAYS)
def serving(request: pytest.FixtureRequest) -> Serve:
    """`serve`, by one of the ways."""
    defaults: dict[str, Any] = WAYS[request.param] | {"tick_interval": 0.05}
    return lambda broadcaster, **more: serve(broadcaster, "127.0.0.1", 0, **(defaults | more))


def url(server: BroadcastServer, target: str) -> str:
    return f"ws://127.0.0.1:{server.port}{target}"


async def read(peer: ClientConnection, count: int = 1) -> list[dict[str, Any]]:
    return [json.loads(await peer.recv()) for _ in range(count)]


async def ask(peer: ClientConnection, **command: Any) -> dict[str, Any]:
    await peer.send(json.dumps(command))
    (answer,) = await read(peer)
    return answer


def progress(number: int) -> JobProgress:
    return JobProgress(job_id="job-1", worker_id="w-1", progress=number / 1000)


def test_each_way_is_what_it_says() -> None:
    @in_loop
    async def scenario(way: str, expected: type[object]) -> None:
        broadcaster = EventBroadcaster()
        async with (
            serve(broadcaster, "127.0.0.1", 0, **WAYS[way]) as server,
            connect(url(server, "/ws/monitor/m")) as peer,
        ):
            await read(peer)
            (subscriber,) = broadcaster.subscribers()
            assert type(subscriber.connection) is expected
            assert len(peer.protocol.extensions) == WAYS[way]["compression"]

    for way in WAYS:
        scenario(way, DirectConnection if way.startswith("direct") else DocumentedConnection)


def test_events_arrive_in_order_and_replies_between_them(serving: Serve) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serving(broadcaster) as server, connect(url(server, "/ws/monitor/m")) as peer:
            assert (await read(peer))[0]["type"] == "connected"
            for number in range(300):
                broadcaster.broadcast(progress(number))
            await peer.send('{"type":"heartbeat"}')
            got = await read(peer, 300)
            assert [each["progress"] for each in got] == [n / 1000 for n in range(300)]
            assert (await read(peer))[0]["type"] == "heartbeat_ack"

    scenario()


def test_a_client_sees_its_job_from_submission_to_outcome(serving: Serve) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()

        async def submit(command: SubmitJob, _: Principal) -> str:
            await asyncio.sleep(0)
            if command.job_type == "no":
                raise HookRefusal("not this one")
            return "job-1"

        async with (
            serving(broadcaster, submit=submit) as server,
            connect(url(server, "/ws/client/c")) as peer,
        ):
            await read(peer)
            refused = await ask(peer, type="submit_job", job_type="no", message_id="1")
            assert (refused["code"], refused["message_id"]) == ("forbidden", "1")
            accepted = await ask(peer, type="submit_job", job_type="yes")
            assert (accepted["type"], accepted["job_id"]) == ("job_accepted", "job-1")
            broadcaster.broadcast(JobAssigned(job_id="job-1", worker_id="w", assigned_at=1))
            broadcaster.broadcast(progress(500))
            broadcaster.broadcast(JobCompleted(job_id="job-1", worker_id="w", result=[1]))
            kinds = [each["type"] for each in await read(peer, 3)]
            assert kinds == ["job_assigned", "update_job_progress", "complete_job"]

    scenario()


def test_unicode_and_large_frames_survive(serving: Serve) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with (
            serving(broadcaster) as server,
            connect(url(server, "/ws/monitor/m"), max_size=None) as peer,
        ):
            await read(peer)
            for size in (1, 125, 126, 65_535, 65_536, 300_000):
                result = "é\u2028🚀"[:size] * (size // 3 + 1)
                broadcaster.broadcast(JobCompleted(job_id="j", worker_id="w", result=result))
                (got,) = await read(peer)
                assert got["result"] == result

    scenario()


def test_a_resumed_connection_gets_what_it_missed_once(serving: Serve) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serving(broadcaster) as server:
            async with connect(url(server, "/ws/monitor/m?resume=new")) as peer:
                (greeting,) = await read(peer)
            for number in range(500):
                broadcaster.broadcast(progress(number))
            target = f"/ws/monitor/m?resume={greeting['position']}"
            async with connect(url(server, target)) as peer:
                await read(peer)
                broadcaster.broadcast(progress(500))
                got = await read(peer, 501)
                assert [each["progress"] for each in got] == [n / 1000 for n in range(501)]

    scenario()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"\x00", opcode=2), 1003),
        (frame(b"\xff\xfe"), 1007),
        (frame(b"x" * 65_537), 1009),
        (frame(b"", opcode=3), 1002),
        (frame(b"{}", rsv=0x20), 1002),
    ],
)
def test_a_faulty_frame_closes_the_connection(serving: Serve, sent: bytes, code: int) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serving(broadcaster) as server:
            with await Raw.connect(server.port, request("/ws/monitor/m")) as peer:
                assert await peer.status() == 101
                await peer.send(sent)
                assert await peer.close_code() == code
            await until(lambda: broadcaster.stats().monitors == 0)

    scenario()


def test_a_newer_connection_replaces_the_older(serving: Serve) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serving(broadcaster) as server:
            async with connect(url(server, "/ws/monitor/m")) as old:
                await read(old)
                async with connect(url(server, "/ws/monitor/m")) as new:
                    await read(new)
                    with pytest.raises(ConnectionClosed):
                        await old.recv()
                    assert old.close_code == 4409
                    broadcaster.broadcast(progress(1))
                    assert (await read(new))[0]["type"] == "update_job_progress"
                    await new.send("{")
                    await read(new)
            await until(lambda: server.endpoint.stats().closed_total.get(4409) == 1)
            assert server.endpoint.stats().errors_total == {"bad_json": 1}

    scenario()


def test_closing_sends_what_was_broadcast_and_then_1001(serving: Serve) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serving(broadcaster) as server:  # noqa: SIM117 - looked at when it is closed
            async with connect(url(server, "/ws/monitor/m")) as peer:
                await read(peer)
                for number in range(1000):
                    job = f"job-{number}"  # an outcome is never conflated, however much waits
                    broadcaster.broadcast(JobCompleted(job_id=job, worker_id="w"))
                closing = asyncio.create_task(server.close())
                assert len(await read(peer, 1000)) == 1000
                with pytest.raises(ConnectionClosed):
                    await peer.recv()
                assert peer.close_code == 1001
                await closing
        assert server.endpoint.stats().connections == 0
        assert broadcaster.stats().monitors == 0

    scenario()


def test_closing_does_not_wait_for_a_peer_that_never_asks(serving: Serve) -> None:
    @in_loop
    async def scenario() -> None:
        # Far longer than the test may take: who has sent nothing is dropped, not waited for.
        async with serving(EventBroadcaster(), open_timeout=1000.0) as server:
            with await Raw.connect(server.port, b"GET /ws/monitor/m HTTP/1.1\r\n"):
                await until(lambda: server.endpoint.stats().requests_pending == 1)
                await server.close()
                assert server.endpoint.stats().requests_pending == 0

    scenario()


def test_a_hook_that_began_ends_though_its_peer_is_gone(serving: Serve) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        began, may_end = asyncio.Event(), asyncio.Event()

        async def submit(_: SubmitJob, __: Principal) -> str:
            began.set()
            await may_end.wait()
            return "job-1"

        async with serving(broadcaster, submit=submit) as server:
            async with connect(url(server, "/ws/client/c")) as peer:
                await read(peer)
                await peer.send('{"type":"submit_job","job_type":"t"}')
                await began.wait()
            may_end.set()
            await until(lambda: broadcaster.jobs.get("job-1") is not None)

    scenario()


# --- a host's own server -------------------------------------------------------------------------


@asynccontextmanager
async def host_server(endpoint: WebSocketEndpoint, **arguments: Any) -> AsyncGenerator[int]:
    """What the module's docstring shows, beside a handler of the host's own."""

    async def handle(websocket: ServerConnection) -> None:
        assert websocket.request is not None
        if websocket.request.path.startswith("/ws/"):
            await endpoint.handle(websocket)
        else:
            await websocket.send("the host's own")

    async def process_request(websocket: ServerConnection, asked: Request) -> Response | None:
        if asked.path.startswith("/ws/"):
            return await endpoint.process_request(websocket, asked)
        return None

    async with (
        websockets_serve(
            handle, "127.0.0.1", 0, process_request=process_request, **arguments
        ) as server,
        endpoint.running(),
    ):
        yield server.sockets[0].getsockname()[1]
        await endpoint.close(5.0)


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("own_class", [True, False])
def test_a_host_serves_it_beside_its_own(compression: str | None, own_class: bool) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        endpoint = WebSocketEndpoint(broadcaster)
        connection_class = endpoint.connection_class if own_class else None
        async with host_server(
            endpoint, compression=compression, create_connection=connection_class
        ) as port:
            async with connect(f"ws://127.0.0.1:{port}/chat") as peer:
                assert await peer.recv() == "the host's own"
            async with connect(f"ws://127.0.0.1:{port}/ws/monitor/m") as peer:
                await read(peer)
                (subscriber,) = broadcaster.subscribers()
                # Where it cannot be written to directly, it is served all the same.
                direct = own_class and compression is None
                assert isinstance(subscriber.connection, DirectConnection) is direct
                broadcaster.broadcast(progress(1))
                assert (await read(peer))[0]["type"] == "update_job_progress"
        assert endpoint.stats().requests_pending == 0

    scenario()


def test_a_host_may_give_the_plain_connection_class() -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        endpoint = WebSocketEndpoint(broadcaster)
        own: Any = {"compression": None, "create_connection": BroadcastConnection}
        async with (
            host_server(endpoint, **own) as port,
            connect(f"ws://127.0.0.1:{port}/ws/monitor/m") as peer,
        ):
            await read(peer)
            (subscriber,) = broadcaster.subscribers()
            assert isinstance(subscriber.connection, DirectConnection)

    scenario()


def test_nobody_is_served_whom_the_gate_did_not_see(caplog: pytest.LogCaptureFixture) -> None:
    @in_loop
    async def scenario() -> None:
        endpoint = WebSocketEndpoint(EventBroadcaster())
        async with websockets_serve(endpoint.handle, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}/ws/monitor/m") as peer:
                with pytest.raises(ConnectionClosed):
                    await peer.recv()
                assert peer.close_code == 1011
        assert endpoint.stats().connections == 0

    scenario()
    assert "expected `process_request` to be given" in caplog.text


@pytest.mark.parametrize(
    ("refusal", "close"),
    [
        (IdTaken("of another"), (4403, "this id belongs to another principal")),
        (Replaced("by another"), (4409, "replaced by a newer connection")),
    ],
)
@in_loop
async def test_an_id_that_went_to_another_after_the_handshake(
    serving: Serve, monkeypatch: pytest.MonkeyPatch, refusal: Exception, close: tuple[int, str]
) -> None:
    broadcaster = EventBroadcaster()

    def add_client(*_: Any, **__: Any) -> None:
        raise refusal

    monkeypatch.setattr(broadcaster, "add_client", add_client)
    async with serving(broadcaster) as server:
        async with connect(url(server, "/ws/client/c")) as peer:
            await peer.wait_closed()
        assert (peer.close_code, peer.close_reason) == close
        await until(lambda: server.endpoint.stats().connections == 0)
