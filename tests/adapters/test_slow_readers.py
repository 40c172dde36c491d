"""A peer that does not read: its transport pauses it, its outbox is bounded, and then it is cut."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from jobqueue_broadcast import EventBroadcaster, JobCompleted
from jobqueue_broadcast.adapters.websockets import ConnectionLimits, serve
from jobqueue_broadcast.adapters.websockets.connections import WRITE_LIMIT
from tests.adapters.raw import Raw, frame, in_loop, request, until

# What one batch may add to a buffer that was just below its limit, with room for framing.
PIECE = 64 * 1024 + 2048

ways = pytest.mark.parametrize("direct", [True, False])


def listener() -> socket.socket:
    """A listening socket whose connections have small kernel buffers."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return sock


def outcome(number: int, size: int = 1000) -> JobCompleted:
    """About a kilobyte that is never conflated."""
    return JobCompleted(job_id=f"job-{number}", worker_id="w", result="x" * size)


def serving(broadcaster: EventBroadcaster, **more: Any) -> Any:
    return serve(broadcaster, None, None, sock=listener(), tick_interval=0.05, **more)


async def stalled_monitor(port: int, target: str = "/ws/monitor/m") -> Raw:
    peer = await Raw.connect(port, request(target), receive_buffer=4096)
    assert await peer.status() == 101
    return peer


async def fill(broadcaster: EventBroadcaster, events: int) -> None:
    for number in range(events):
        broadcaster.broadcast(outcome(number))
        await asyncio.sleep(0)


async def jobs_read(peer: Raw, count: int) -> list[str]:
    """Read outcomes; return their jobs."""
    jobs: list[str] = []
    while len(jobs) < count and (found := await peer.frame()) is not None:
        if b"complete_job" in found[1]:
            jobs.append(found[1].split(b'"job_id":"')[1].split(b'"')[0].decode())
    return jobs


@ways
def test_a_slow_reader_waits_in_its_outbox_and_gets_everything_in_order(direct: bool) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serving(broadcaster, direct=direct) as server:
            with await stalled_monitor(server.port) as peer:
                await until(lambda: broadcaster.subscribers())
                await fill(broadcaster, 600)
                (subscriber,) = broadcaster.subscribers()
                await until(lambda: subscriber.behind)
                assert subscriber.waiting > 0
                assert subscriber.connection.backlog() <= WRITE_LIMIT + PIECE
                assert await jobs_read(peer, 600) == [f"job-{n}" for n in range(600)]
                await until(lambda: not subscriber.behind)
                broadcaster.broadcast(outcome(600))
                assert await jobs_read(peer, 1) == ["job-600"]

    scenario()


@ways
def test_a_full_outbox_closes_with_4408(direct: bool) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster(outbox_limit=64 * 1024)
        async with serving(broadcaster, direct=direct, close_timeout=20.0) as server:
            with await stalled_monitor(server.port) as peer:
                await until(lambda: broadcaster.subscribers())
                await fill(broadcaster, 600)
                await until(lambda: broadcaster.stats().too_slow_total == 1)
                assert broadcaster.stats().monitors == 0
                assert await peer.close_code() == 4408
                await peer.send(frame((4408).to_bytes(2), opcode=8))
            await until(lambda: server.endpoint.stats().connections == 0)

    scenario()


@ways
def test_who_takes_nothing_is_aborted(direct: bool) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster(stall_limit=0.2)
        async with serving(broadcaster, direct=direct) as server:
            with await stalled_monitor(server.port):
                await until(lambda: broadcaster.subscribers())
                await fill(broadcaster, 300)
                await until(lambda: broadcaster.stats().stalled_total == 1)
                await until(lambda: server.endpoint.stats().connections == 0)
                assert broadcaster.stats().outbox_bytes == 0

    scenario()


@ways
def test_resuming_over_a_large_history_is_paced_by_the_reader(direct: bool) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serving(broadcaster, direct=direct) as server:
            position = broadcaster.history.position
            for number in range(5000):
                broadcaster.broadcast(outcome(number))
            with await stalled_monitor(server.port, f"/ws/monitor/m?resume={position}") as peer:
                await until(lambda: broadcaster.subscribers())
                (subscriber,) = broadcaster.subscribers()
                await until(lambda: subscriber.connection.backlog() > WRITE_LIMIT // 2)
                most = 0
                for _ in range(50):
                    most = max(most, subscriber.connection.backlog() + subscriber.waiting)
                    await asyncio.sleep(0)
                # Five megabytes are owed; what is held in memory for this peer is a few pieces.
                assert most <= WRITE_LIMIT + 2 * PIECE
                assert await jobs_read(peer, 5000) == [f"job-{n}" for n in range(5000)]

    scenario()


@ways
def test_the_states_of_many_jobs_are_paced_too(direct: bool) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster(outbox_limit=8 * 1024 * 1024)
        for number in range(2000):
            broadcaster.subscribe_client_to_job("c", f"job-{number}")
            broadcaster.broadcast(outcome(number))
        async with serving(broadcaster, direct=direct) as server:
            with await stalled_monitor(server.port, "/ws/client/c") as peer:
                await until(lambda: broadcaster.subscribers())
                (subscriber,) = broadcaster.subscribers()
                await until(lambda: subscriber.behind)
                assert subscriber.connection.backlog() <= WRITE_LIMIT + 2 * PIECE
                assert len(await jobs_read(peer, 2000)) == 2000

    scenario()


@pytest.mark.parametrize("size", [0, 125])
def test_who_sends_pings_and_reads_nothing_is_cut(size: int) -> None:
    # `websockets` answers each ping into the full buffer, and a growing buffer is no stall.
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster(stall_limit=1000.0)
        limits = ConnectionLimits(ping_rate=1.0, ping_burst=100_000)
        async with serving(broadcaster, ping_interval=None, connection_limits=limits) as server:
            with await stalled_monitor(server.port) as peer:
                await until(lambda: broadcaster.subscribers())
                (subscriber,) = broadcaster.subscribers()
                pings = frame(b"p" * size, opcode=9) * (65536 // (6 + size))
                most = 0
                while server.endpoint.stats().flooded_total == 0:
                    await peer.send(pings)
                    most = max(most, subscriber.connection.backlog())
                    await asyncio.sleep(0)
                await until(lambda: server.endpoint.stats().connections == 0)
                # What the pings that were allowed are answered with, and one read more.
                assert most <= 100_000 * (2 + size) + 256 * 1024
                assert broadcaster.stats().monitors == 0

    scenario()


def test_an_honest_rate_of_pings_is_answered() -> None:
    @in_loop
    async def scenario() -> None:
        async with serving(EventBroadcaster()) as server:
            with await stalled_monitor(server.port) as peer:
                assert await peer.frame() is not None
                await peer.send(frame(b"hello", opcode=9) * 50)
                for _ in range(50):
                    assert await peer.frame() == (0x8A, b"hello")
                assert server.endpoint.stats().flooded_total == 0

    scenario()
