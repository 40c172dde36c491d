"""X7: what there is too much of is bounded and refused, while others are served."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from jobqueue_broadcast import EventBroadcaster, JobProgress
from jobqueue_broadcast.adapters.websockets import (
    BroadcastServer,
    ConnectionLimits,
    SessionLimits,
    serve,
)
from tests.adapters.raw import Raw, frame, gather, in_loop, request, status_of, until


@asynccontextmanager
async def served_meanwhile(server: BroadcastServer) -> AsyncGenerator[None]:
    """Another peer that, during all of it, gets every answer and every event in order."""
    broadcaster = server.broadcaster
    answered = 0
    stop = asyncio.Event()

    async def honest() -> None:
        nonlocal answered
        with await Raw.connect(server.port, request("/ws/monitor/honest")) as peer:
            assert await peer.status() == 101
            await peer.frame()
            while not stop.is_set() or answered < 5:
                await peer.send(frame(b'{"type":"heartbeat"}'))
                found = await peer.frame()
                assert found is not None
                assert json.loads(found[1])["type"] == "heartbeat_ack"
                broadcaster.broadcast(JobProgress(job_id="j", worker_id="w", progress=0.5))
                found = await peer.frame()
                assert found is not None
                assert json.loads(found[1])["type"] == "update_job_progress"
                answered += 1
                await asyncio.sleep(0.02)

    task = asyncio.create_task(honest())
    await until(lambda: answered >= 1 or task.done())
    try:
        yield
    finally:
        stop.set()
        await task
    print(f"X7: the honest peer was answered {answered} times of {answered}")


@in_loop
async def test_idle_handshakes_are_bounded() -> None:
    limits = ConnectionLimits(pending=50)
    async with (
        serve(
            EventBroadcaster(), "127.0.0.1", 0, connection_limits=limits, open_timeout=60.0
        ) as server,
        served_meanwhile(server),
    ):
        peers = []
        most = 0
        for number in range(400):
            # Some say nothing, some begin and dribble on.
            begun = b"" if number % 2 else b"GET /ws/monitor/m HTTP/1.1\r\nHost: local"
            peers.append(await Raw.connect(server.port, begun))
            most = max(most, server.endpoint.stats().requests_pending)
        await until(lambda: server.endpoint.stats().requests_dropped_total >= 350)
        for peer in peers[-50:]:
            await peer.send(b"h")
        assert await status_of(server.port, request("/ws/monitor/late")) == 101
        stats = server.endpoint.stats()
        print(f"X7: 400 idle handshakes, at most {most} held, "
              f"{stats.requests_dropped_total} dropped, 0 let in")  # fmt: skip
        assert most <= 50
        for peer in peers:
            peer.close()


@in_loop
async def test_endless_headers_are_cut() -> None:
    async with serve(EventBroadcaster(), "127.0.0.1", 0) as server, served_meanwhile(server):
        sent = 0
        with await Raw.connect(server.port, request("/ws/monitor/m")[:-2]) as peer:
            while server.endpoint.stats().requests_too_large_total == 0:
                await peer.send(b"X: " + b"x" * 1000 + b"\r\n")
                sent += 1005
                await asyncio.sleep(0)
            assert await peer.status() in (431, 0)
        print(f"X7: endless headers, cut after {sent} bytes")
        assert sent <= 256 * 1024


@in_loop
async def test_what_is_no_http_is_cut_too_and_breaks_nothing() -> None:
    failed: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    async with serve(EventBroadcaster(), "127.0.0.1", 0) as server, served_meanwhile(server):
        with await Raw.connect(server.port, b"this is no HTTP\r\n\r\n") as peer:
            await peer.rest()  # the server has said all it has to say, and listens
            while server.endpoint.stats().requests_too_large_total == 0:
                await peer.send(b"x" * 1000)
                await asyncio.sleep(0)
        await until(lambda: server.endpoint.stats().connections == 1)
    assert not failed


@in_loop
async def test_a_flood_of_commands_is_cut_with_4429() -> None:
    async with serve(
        EventBroadcaster(),
        "127.0.0.1",
        0,
        session_limits=SessionLimits(command_rate=1.0, command_burst=20),
        origins=[],
    ) as server:
        got: Counter[str] = Counter()
        with await Raw.connect(server.port, request("/ws/client/flood")) as peer:
            assert await peer.status() == 101
            await peer.send(frame(b'{"type":"unsubscribe_progress","job_id":"j"}') * 500)
            code = None
            while (found := await peer.frame()) is not None:
                if found[0] == 0x88:
                    code = int.from_bytes(found[1][:2])
                    break
                got[json.loads(found[1]).get("code", "ok")] += 1
        print(f"X7: 500 commands at once, {got['ok'] - 1} carried out, then {code}")
        assert code == 4429
        assert got["ok"] - 1 <= 21
        await until(lambda: server.endpoint.stats().connections == 0)


@in_loop
async def test_a_flood_of_pings_is_cut() -> None:
    async with serve(EventBroadcaster(), "127.0.0.1", 0) as server, served_meanwhile(server):
        cut = 0
        for number in range(20):
            with await Raw.connect(server.port, request(f"/ws/client/p{number}")) as peer:
                assert await peer.status() == 101
                await peer.send(frame(b"", opcode=9 + number % 2) * 5_000)
                await peer.rest()
                cut += 1
        await until(lambda: server.endpoint.stats().flooded_total == 20)
        print(f"X7: 20 floods of 5,000 pings, {cut} cut")


@in_loop
async def test_a_flood_of_connections_is_refused() -> None:
    limits = ConnectionLimits(total=60, per_address=60)
    async with (
        serve(EventBroadcaster(), "127.0.0.1", 0, connection_limits=limits) as server,
        served_meanwhile(server),
    ):
        peers = await gather(
            *(Raw.connect(server.port, request(f"/ws/monitor/m{n}")) for n in range(400))
        )
        statuses = Counter(await gather(*(peer.status() for peer in peers)))
        print(f"X7: 400 connections past a limit of 60, {statuses[101]} let in, "
              f"{statuses[503]} refused with 503")  # fmt: skip
        assert statuses == {101: 59, 503: 341}
        for peer in peers:
            peer.close()
        await until(lambda: server.endpoint.stats().connections == 1)
