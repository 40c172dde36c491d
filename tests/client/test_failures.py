"""What servers, networks and callers do wrong: refusals, closings, silence, duplicates, secrets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from jobqueue_broadcast import JobProgress
from jobqueue_broadcast.client import (
    ClientPeer,
    Gap,
    MonitorPeer,
    UnknownEvent,
    connect_client,
    connect_monitor,
)
from jobqueue_broadcast.client_format import ClientCompleteJob, ClientJobAccepted
from jobqueue_broadcast.errors import (
    CommandFailed,
    ConnectionEnded,
    ConnectRefused,
    InvalidArgument,
)
from tests.client.harness import (
    BACKOFF,
    ProxyThread,
    RealServer,
    Script,
    ScriptedServer,
    TcpThread,
    Visit,
    in_time,
    until,
)
from tests.tcp import Handler

pytestmark = pytest.mark.anyio

Scripted = Callable[..., ScriptedServer]
Serve = Callable[..., RealServer]
Proxied = Callable[[int], ProxyThread]
Raw = Callable[[Handler], TcpThread]

STATE: dict[str, Any] = {"workers": {}, "machines": {}, "jobs": {}, "system_stats": {}}


def monitor(server: ScriptedServer, **options: Any) -> Any:
    return connect_monitor(server.url, monitor_id="m", backoff=BACKOFF, **options)


def client(server: ScriptedServer, **options: Any) -> Any:
    return connect_client(server.url, client_id="c", backoff=BACKOFF, **options)


async def staying(visit: Visit) -> None:
    await visit.greet()
    await visit.stay()


async def send_progress(visit: Visit, position: str) -> None:
    number = int(position.partition(":")[2])
    await visit.send(
        type="update_job_progress",
        job_id="j",
        worker_id="w",
        progress=number / 1000,
        position=position,
    )


def closing(code: int, reason: str = "") -> Script:
    async def script(visit: Visit) -> None:
        await visit.greet()
        await visit.websocket.close(code, reason)

    return script


# --- the handshake -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_refusals_are_raised(scripted: Scripted, status: int) -> None:
    server = scripted(staying)
    server.refusals = [(status, {}, "because of that\nand more")]
    async with in_time():
        with pytest.raises(ConnectRefused) as refused:
            async with monitor(server):
                pytest.fail("not to be entered")
    assert (refused.value.status, refused.value.reason) == (status, "because of that")
    assert len(server.paths) == 1


async def test_a_full_server_is_asked_again_after_the_time_it_names(scripted: Scripted) -> None:
    server = scripted(staying)
    server.refusals = [(503, {"Retry-After": "1"}, "full"), (502, {}, "")]
    async with in_time():
        begin = anyio.current_time()
        async with monitor(server) as peer:
            assert peer.connections == 1
        assert anyio.current_time() - begin >= 1, "not before it said"
    assert len(server.paths) == 3


async def test_a_refusal_later_is_the_end_too(scripted: Scripted) -> None:
    async def script(visit: Visit) -> None:
        await visit.greet()
        await visit.receive("get_job_status")
        server.refusals = [(403, {}, "no longer")]
        visit.websocket.transport.abort()

    server = scripted(script)
    async with in_time(), client(server) as peer:
        with pytest.raises(ConnectRefused):
            await peer.status("j")
        with pytest.raises(ConnectRefused):
            await peer.result("j")


async def test_a_server_that_is_not_there_yet_is_waited_for(serve: Serve) -> None:
    first = serve()
    first.stop()
    async with in_time(), anyio.create_task_group() as tasks:
        entered: list[MonitorPeer] = []

        async def connect() -> None:
            async with connect_monitor(first.url, monitor_id="m", backoff=BACKOFF) as peer:
                entered.append(peer)

        tasks.start_soon(connect)
        await anyio.wait_all_tasks_blocked()
        serve(port=first.port)
        await until(lambda: bool(entered))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00" * 20_000,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
async def test_what_does_not_speak_websocket_is_asked_again(raw: Raw, answer: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    await connects_again_and_again(raw(handle))


async def test_a_server_that_never_answers_is_given_up(raw: Raw) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    await connects_again_and_again(raw(handle), open_timeout=0.05)


async def connects_again_and_again(server: TcpThread, **options: Any) -> None:
    async with in_time(), anyio.create_task_group() as tasks:

        async def connect() -> None:
            async with connect_monitor(server.url, monitor_id="m", backoff=BACKOFF, **options):
                pytest.fail("not to be entered")

        tasks.start_soon(connect)
        await until(lambda: server.connections >= 3)
        tasks.cancel_scope.cancel()


# --- the end of a connection ---------------------------------------------------------------------


@pytest.mark.parametrize("code", [1003, 1007, 1008, 1009, 4403, 4409])
async def test_codes_that_say_do_not_reconnect(scripted: Scripted, code: int) -> None:
    server = scripted(closing(code, "said so"))
    async with in_time(), monitor(server) as peer:
        with pytest.raises(ConnectionEnded) as ended:
            await anext(peer)
    assert (ended.value.code, ended.value.reason) == (code, "said so")
    assert len(server.paths) == 1


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4408, 4429])
async def test_codes_that_say_come_again(scripted: Scripted, code: int) -> None:
    server = scripted(closing(code), staying)
    async with in_time(), monitor(server) as peer:
        await until(lambda: peer.connections == 2)
    assert server.paths[0].endswith("?resume=new")
    assert server.paths[1].endswith("?resume=e:0")


async def test_what_the_block_raises_is_raised_as_it_is(scripted: Scripted) -> None:
    server = scripted(staying)
    async with in_time():
        for error in (KeyError("k"), StopAsyncIteration(), KeyboardInterrupt()):
            with pytest.raises(type(error)) as raised:
                async with monitor(server), client(server):
                    raise error
            assert raised.value is error


async def test_a_silent_server_counts_as_broken(serve: Serve, proxied: Proxied) -> None:
    server = serve()
    proxy = proxied(server.port)
    async with (
        in_time(),
        connect_monitor(
            proxy.url, monitor_id="m", backoff=BACKOFF, ping_interval=0.05, ping_timeout=2.0
        ) as peer,
    ):
        before = proxy.from_client
        await until(lambda: proxy.from_client >= before + 10 * 6)
        assert peer.connections == 1, "ten pings of six bytes, and their pongs"
        proxy.withhold()
        server.broadcast(JobProgress(job_id="j", worker_id="w", progress=0.5, timestamp=1))
        await until(lambda: not peer.connected)
        proxy.flow()
        event = await anext(peer)
        assert isinstance(event, JobProgress)
        assert peer.connections >= 2


async def test_a_caller_that_does_not_read_is_not_a_silent_server(serve: Serve) -> None:
    server = serve()
    async with (
        in_time(),
        connect_monitor(
            server.url, monitor_id="m", buffer_limit=1, ping_interval=0.02, ping_timeout=1.0
        ) as peer,
    ):
        events = [
            JobProgress(job_id="j", worker_id="w", progress=n / 10, timestamp=n + 1)
            for n in range(10)
        ]
        server.broadcast(*events)
        await anyio.sleep(1.5)  # Time passing is what is tested: more than both together.
        assert [await anext(peer) for _ in events] == events
        assert peer.connections == 1


async def test_a_frame_beyond_max_size_is_the_end(scripted: Scripted) -> None:
    async def script(visit: Visit) -> None:
        await visit.greet()
        await visit.send(type="big", data="x" * 5000)
        await visit.stay()

    server = scripted(script)
    async with in_time(), monitor(server, max_size=1000) as peer:
        with pytest.raises(ConnectionEnded) as ended:
            await anext(peer)
    assert ended.value.code == 1009


async def test_fragments_and_pings_are_understood(scripted: Scripted) -> None:
    async def script(visit: Visit) -> None:
        await visit.greet()
        pong = await visit.websocket.ping()
        await pong
        await visit.websocket.send(['{"type":"custom",', '"timestamp":3,', '"position":"e:1"}'])
        await visit.stay()

    server = scripted(script)
    async with in_time(), monitor(server) as peer:
        event = await anext(peer)
    data = {"type": "custom", "timestamp": 3, "position": "e:1"}
    assert event == UnknownEvent(type="custom", timestamp=3, data=data)


# --- what is sent --------------------------------------------------------------------------------


async def test_duplicates_are_left_out_and_counted(scripted: Scripted) -> None:
    async def first(visit: Visit) -> None:
        await visit.greet("e:5")
        for number in (6, 7, 7, 6, 8):
            await send_progress(visit, f"e:{number}")
        await visit.websocket.close(1001)

    async def second(visit: Visit) -> None:
        await visit.greet("e:8")
        for number in (7, 8, 9):
            await send_progress(visit, f"e:{number}")
        await visit.stay()

    server = scripted(first, second)
    async with in_time(), monitor(server) as peer:
        seen = [(await anext(peer)).progress for _ in range(4)]
        assert seen == [0.006, 0.007, 0.008, 0.009]
        assert peer.duplicates == 4
        assert peer.position == "e:9"
    assert "resume=e:8" in server.paths[1]


async def test_a_gap_whose_state_did_not_arrive_is_asked_for_again(scripted: Scripted) -> None:
    async def first(visit: Visit) -> None:
        await visit.greet("old:5")
        visit.websocket.transport.abort()

    async def second(visit: Visit) -> None:
        await visit.greet("old:5")
        await visit.send(type="resync_required", reason="epoch", position="new:3")
        await visit.websocket.close(1001)

    async def third(visit: Visit) -> None:
        await visit.greet("old:5")
        await visit.send(type="resync_required", reason="epoch", position="new:4")
        await visit.send(type="full_state_snapshot", data=STATE)
        await send_progress(visit, "new:5")
        await visit.stay()

    server = scripted(first, second, third)
    async with in_time(), monitor(server) as peer:
        assert await anext(peer) == Gap(reason="epoch", position="new:4", state=STATE)
        assert (await anext(peer)).progress == 0.005
    assert all("resume=old:5" in path for path in server.paths[1:])


async def test_another_epoch_without_a_word_is_not_taken_for_continuity(
    scripted: Scripted,
) -> None:
    async def first(visit: Visit) -> None:
        await visit.greet("old:5")
        await send_progress(visit, "new:1")
        await visit.stay()

    async def second(visit: Visit) -> None:
        await visit.greet("old:5")
        await visit.send(type="resync_required", reason="epoch", position="new:1")
        await visit.send(type="full_state_snapshot", data=STATE)
        await visit.stay()

    server = scripted(first, second)
    async with in_time(), monitor(server) as peer:
        assert isinstance(await anext(peer), Gap)


@pytest.mark.parametrize(
    "frame",
    [b"not text", "", "[]", "{}", '{"type":1}', '{"type":"x","position":"?"}', '{"type":"error"}'],
)
async def test_nonsense_is_answered_with_another_connection(
    scripted: Scripted, frame: str | bytes
) -> None:
    async def first(visit: Visit) -> None:
        await visit.greet("e:5")
        await visit.websocket.send(frame)
        await visit.stay()

    server = scripted(first, staying)
    for connect in (monitor, client):
        server.scripts[:] = [first, staying]
        async with in_time(), connect(server) as peer:
            await until(lambda: peer.connections == 2)


async def test_events_this_side_does_not_know_are_given_raw(scripted: Scripted) -> None:
    async def script(visit: Visit) -> None:
        await visit.greet()
        await visit.send(type="from_the_future", answer=42, position="e:1")
        await visit.send(
            type="job_status_changed", job_id="j", old_status="?", new_status="!", position="e:2"
        )
        await visit.stay()

    server = scripted(script)
    async with in_time(), monitor(server) as peer:
        for kind, position in (("from_the_future", "e:1"), ("job_status_changed", "e:2")):
            event = await anext(peer)
            assert isinstance(event, UnknownEvent)
            assert (event.type, event.timestamp) == (kind, 1)
            assert peer.position == position


async def test_frames_a_client_does_not_know_reach_the_jobs_watchers(scripted: Scripted) -> None:
    async def script(visit: Visit) -> None:
        await visit.greet()
        command = await visit.receive("subscribe_progress")
        await visit.send(type="subscribed", job_id="j", message_id=command["message_id"])
        await visit.send(type="step", job_id="j", step=1, position="e:1")
        await visit.send(type="without_a_job", position="e:2")
        await visit.send(type="error", code="from_the_future", error="?", position="e:2")
        await visit.send(type="complete_job", job_id="j", result={"status": "success", "data": 1})
        await visit.stay()

    server = scripted(script)
    async with in_time(), client(server) as peer:
        updates = [update async for update in peer.watch("j")]
        assert [type(update) for update in updates] == [UnknownEvent, ClientCompleteJob]


async def test_a_clients_states_sent_again_are_shown_once(scripted: Scripted) -> None:
    states: list[dict[str, Any]] = [
        {"type": "job_accepted", "job_id": "j", "status": "queued", "position": "e:3"},
        {"type": "update_job_progress", "job_id": "j", "progress": 0.5, "position": "e:3.1"},
    ]
    done = {"type": "complete_job", "job_id": "j", "result": {"status": "success", "data": 1}}

    async def first(visit: Visit) -> None:
        await visit.greet("e:3")
        command = await visit.receive("subscribe_progress")
        await visit.send(type="subscribed", job_id="j", message_id=command["message_id"])
        for state in states:
            await visit.send(**state)
        await visit.websocket.close(1001)

    async def second(visit: Visit) -> None:
        await visit.greet("e:3.1")
        for state in (*states, done, done, states[0]):
            await visit.send(**state)
        await visit.stay()

    server = scripted(first, second)
    async with in_time(), client(server) as peer:
        updates = [update async for update in peer.watch("j")]
        assert [type(update) for update in updates].count(ClientJobAccepted) == 1
        assert [type(update) for update in updates].count(ClientCompleteJob) == 1
        assert await peer.result("j") == 1
    assert server.paths[1] == "/ws/client/c?resume=e:3.1&jobs=j"


async def test_a_job_the_server_does_not_confirm_is_asked_for_by_name(scripted: Scripted) -> None:
    """The answer to a job in the URL does not say which job it is about."""

    async def first(visit: Visit) -> None:
        await visit.greet("e:3")
        for _ in range(2):
            command = await visit.receive("subscribe_progress")
            job_id, message_id = command["job_id"], command["message_id"]
            await visit.send(type="subscribed", job_id=job_id, message_id=message_id)
        await visit.websocket.close(1001)

    async def second(visit: Visit) -> None:
        await visit.greet("e:3")
        await visit.send(type="error", code="not_found", error="no such job")
        await visit.send(type="subscribed", job_id="b")
        command = await visit.receive("subscribe_progress")
        assert command["job_id"] == "a"
        message_id = command["message_id"]
        await visit.send(type="error", code="not_found", error="gone", message_id=message_id)
        await visit.send(type="complete_job", job_id="b", result={"status": "success", "data": 2})
        await visit.stay()

    server = scripted(first, second)
    outcome: dict[str, Any] = {}

    async def ask(peer: ClientPeer, job_id: str) -> None:
        try:
            outcome[job_id] = await peer.result(job_id)
        except CommandFailed as failed:
            outcome[job_id] = failed.code

    async with in_time(), client(server) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, peer, "a")
        tasks.start_soon(ask, peer, "b")
    assert outcome == {"a": "not_found", "b": 2}


async def test_a_submission_is_repeated_under_its_message_id(scripted: Scripted) -> None:
    seen: list[dict[str, Any]] = []

    async def first(visit: Visit) -> None:
        await visit.greet()
        seen.append(await visit.receive("submit_job"))
        visit.websocket.transport.abort()

    async def second(visit: Visit) -> None:
        await visit.greet()
        # Of an earlier process with this id; not the answer.
        await visit.send(type="job_accepted", job_id="old", status="queued")
        seen.append(await visit.receive("submit_job"))
        await visit.send(type="job_accepted", job_id="new", status="queued")
        await visit.stay()

    server = scripted(first, second)
    async with in_time(), client(server) as peer:
        assert await peer.submit("render", payload={"a": 1}) == "new"
    assert seen[0] == seen[1]
    assert len(seen[0]["message_id"]) >= 16


# --- credentials ---------------------------------------------------------------------------------


async def test_a_token_is_asked_for_at_every_connect(scripted: Scripted) -> None:
    tokens = ["one", "two"]

    async def fetch() -> str:
        await anyio.lowlevel.checkpoint()
        return tokens.pop(0)

    server = scripted(closing(1001), staying)
    async with in_time(), monitor(server, token=fetch) as peer:
        await until(lambda: peer.connections == 2)
    assert server.authorizations == ["Bearer one", "Bearer two"]


async def test_an_expired_token_is_replaced(scripted: Scripted) -> None:
    tokens = ["one", "two"]
    server = scripted(closing(4401), staying)
    async with in_time(), monitor(server, token=lambda: tokens.pop(0)) as peer:
        await until(lambda: peer.connections == 2)
    assert server.authorizations == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("token", [None, "fixed", lambda: "same"])
async def test_an_expired_token_without_another_is_the_end(scripted: Scripted, token: Any) -> None:
    server = scripted(closing(4401, "expired"))
    async with in_time(), monitor(server, token=token) as peer:
        with pytest.raises(ConnectionEnded) as ended:
            await anext(peer)
    assert ended.value.code == 4401
    assert len(server.paths) == 1


async def test_new_tokens_that_do_not_help_are_not_tried_for_ever(scripted: Scripted) -> None:
    count = 0

    def fetch() -> str:
        nonlocal count
        count += 1
        return f"t{count}"

    server = scripted(closing(4401, "expired"))
    async with in_time(), monitor(server, token=fetch) as peer:
        with pytest.raises(ConnectionEnded):
            await anext(peer)
    assert len(server.paths) == 2


async def test_what_the_token_function_raises_reaches_the_caller(scripted: Scripted) -> None:
    tokens = ["one"]
    server = scripted(closing(1001))
    async with in_time(), monitor(server, token=lambda: tokens.pop(0)) as peer:
        with pytest.raises(IndexError):
            await anext(peer)
    async with in_time():
        with pytest.raises(InvalidArgument):
            async with monitor(server, token="a\r\nb"):
                pytest.fail("not to be entered")


async def test_a_token_appears_nowhere(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-7f3a"
    texts: list[str] = []
    with caplog.at_level(logging.DEBUG):
        server = scripted(closing(1001), staying)
        for connect in (monitor, client):
            server.scripts = [closing(1001), staying]
            async with in_time(), connect(server, token=canary) as peer:
                await until(lambda: peer.connections == 2)
                texts += [repr(peer), str(vars(peer))]
            server.refusals = [(403, {}, f"no: Bearer {canary}")]
            with pytest.raises(ConnectRefused) as refused:
                async with in_time(), connect(server, token=canary):
                    pytest.fail("not to be entered")
            texts += [repr(refused.value), str(refused.value), str(vars(refused.value))]
            server.scripts = [closing(4401)]
            async with in_time(), connect(server, token=canary) as peer:
                with pytest.raises(ConnectionEnded) as ended:
                    await (anext(peer) if connect is monitor else peer.status("j"))
            texts.append(repr(ended.value))
    # The server's own log, in this process too, is not the peer's.
    texts += [r.getMessage() for r in caplog.records if r.name != "websockets.server"]
    assert any("websockets.client" in record.name for record in caplog.records)
    assert canary not in "\n".join(texts)
    assert all(canary not in path for path in server.paths)
    assert f"Bearer {canary}" in server.authorizations


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.skipif(
    tuple(map(int, version("anyio").split(".")[:2])) < (4, 16),
    reason="before 4.16, anyio.connect_tcp loses the socket when cancelled as it connects",
)
async def test_cancelled_at_any_moment_nothing_is_left(
    serve: Serve, anyio_backend_name: str
) -> None:
    server = serve()
    server.broadcast(JobProgress(job_id="j", worker_id="w", progress=0.5))

    async def everything() -> None:
        async with (
            connect_monitor(server.url, monitor_id="m", backoff=BACKOFF) as peer,
            connect_client(server.url, client_id="c", backoff=BACKOFF) as other,
        ):
            await peer.full_state()
            job_id = await other.submit("x")
            await anext(other.watch(job_id))
            await peer.resync(0)
            await other.result(job_id)

    before = len(asyncio.all_tasks()) if anyio_backend_name == "asyncio" else 0
    async with in_time(60):
        for moment in range(0, 120, 3):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(everything)
                for _ in range(moment):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
            if anyio_backend_name == "asyncio":
                assert len(asyncio.all_tasks()) == before
        await until(lambda: server.stats().monitors == server.stats().clients == 0)


async def test_leaving_a_server_that_no_longer_answers_is_quick(
    serve: Serve, proxied: Proxied
) -> None:
    server = serve()
    proxy = proxied(server.port)
    async with in_time():
        async with connect_monitor(proxy.url, monitor_id="m", close_timeout=0.1):
            proxy.withhold()
        proxy.flow()
