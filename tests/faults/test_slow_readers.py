"""Peers that stop reading cost the others nothing, and the server a bounded outbox (R5, R6, R8)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websockets_connect

from jobqueue_broadcast import EventBroadcaster, JobCompleted, JobProgress
from jobqueue_broadcast.adapters.websockets import BroadcastServer, serve
from tests.faults.swarm import RawPeer, Swarm

OUTBOX = 256 * 1024
PEERS = 300


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    swarm = Swarm()
    yield swarm
    swarm.close()


def listener() -> socket.socket:
    """A listening socket whose connections have small kernel buffers, so that stalls show soon."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    return sock


def completed(number: int) -> JobCompleted:
    """An outcome of about 1 KiB: never conflated, so it fills the outbox of a stalled peer."""
    return JobCompleted(job_id=f"job-{number}", worker_id="w", result={"text": "x" * 1000})


def server_memory(broadcaster: EventBroadcaster, monitor_id: str) -> int:
    """Bytes of user space the server holds for one monitor: its outbox and its write buffer."""
    subscriber = broadcaster.monitors.get(monitor_id)
    return 0 if subscriber is None else subscriber.waiting + subscriber.connection.backlog()


async def connect(server: BroadcastServer, swarm: Swarm, stalled: int) -> list[RawPeer]:
    """Connect `PEERS` monitors, the first few of which read nothing after the handshake."""
    slow = await asyncio.to_thread(
        lambda: [
            RawPeer(server.port, f"/ws/monitor/stalled-{number}", receive_buffer=4096)
            for number in range(stalled)
        ]
    )
    swarm.peers += slow
    targets = [f"/ws/monitor/m-{number}" for number in range(PEERS - stalled)]
    await asyncio.to_thread(swarm.connect, server.port, targets)
    return slow


async def broadcast_until(
    broadcaster: EventBroadcaster, done: Callable[[], bool], most: int
) -> int:
    """Broadcast outcomes, one a turn, until `done()` or `most`; return how many."""
    for number in range(most):
        if done():
            return number
        broadcaster.broadcast(completed(number))
        await asyncio.sleep(0)
    return most


@pytest.mark.parametrize("stalled", [1, 30])
def test_stalled_readers_are_cut_and_the_others_get_everything(swarm: Swarm, stalled: int) -> None:
    async def scenario() -> None:
        broadcaster = EventBroadcaster(outbox_limit=OUTBOX, stall_limit=1.0, history_limit=100)
        async with serve(
            broadcaster, None, None, sock=listener(), tick_interval=0.05, grace=5.0
        ) as server:
            slow = await connect(server, swarm, stalled)
            names = [f"stalled-{number}" for number in range(stalled)]
            most_memory = 0

            def cut() -> bool:
                nonlocal most_memory
                most_memory = max(
                    most_memory, *(server_memory(broadcaster, name) for name in names)
                )
                return all(broadcaster.monitors.get(name) is None for name in names)

            sent = await broadcast_until(broadcaster, cut, 50_000)
            stats = broadcaster.stats()
            assert cut(), "a stalled reader was never cut"
            assert stats.too_slow_total + stats.stalled_total == stalled
            assert most_memory <= OUTBOX + 256 * 1024

            healthy = [peer for peer in swarm.peers if peer not in slow]
            broadcaster.broadcast(completed(sent))
            await asyncio.to_thread(
                swarm.wait_for, lambda: all(len(peer.frames) == sent + 2 for peer in healthy)
            )
            for peer in healthy:
                jobs = [frame["job_id"] for frame in peer.decoded()[1:]]
                assert jobs == [f"job-{number}" for number in range(sent + 1)]
            # Readers that keep up are behind for moments; then nothing is kept for anybody.
            async with asyncio.timeout(60):
                while broadcaster.stats().behind:  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(0.01)
            assert broadcaster.stats().outbox_bytes == 0
            print(
                f"\n{stalled} stalled of {PEERS}: cut after {sent} outcomes, at most "
                f"{most_memory} bytes held for one (limit {OUTBOX} + 262144); the others got "
                f"{sent + 1} of {sent + 1} outcomes each, in order"
            )

    asyncio.run(scenario())


def test_a_reader_that_takes_nothing_is_aborted_at_the_stall_limit(swarm: Swarm) -> None:
    """Progress alone never fills the outbox, so only the stall limit can end this."""

    async def scenario() -> None:
        broadcaster = EventBroadcaster(stall_limit=0.3)
        async with serve(broadcaster, None, None, sock=listener(), tick_interval=0.05) as server:
            peer = await asyncio.to_thread(RawPeer, server.port, "/ws/monitor/stalled", 4096)
            swarm.peers.append(peer)
            for number in range(200_000):
                if broadcaster.monitors.get("stalled") is None:
                    break
                broadcaster.broadcast(
                    JobProgress(job_id=f"j{number % 50}", worker_id="w", progress=0.5)
                )
                await asyncio.sleep(0)
            stats = broadcaster.stats()
            assert stats.stalled_total == 1
            assert stats.too_slow_total == 0
            assert stats.conflated_total > 0
            print(f"\naborted; {stats.conflated_total} progress frames were conflated meanwhile")

    asyncio.run(scenario())


def test_a_slow_reader_that_recovers_has_every_outcome_in_order(swarm: Swarm) -> None:
    async def scenario() -> None:
        broadcaster = EventBroadcaster(stall_limit=60.0)
        async with serve(broadcaster, None, None, sock=listener()) as server:
            peer = await asyncio.to_thread(RawPeer, server.port, "/ws/monitor/slow", 4096)
            swarm.peers.append(peer)
            jobs = 0
            while not (subscriber := broadcaster.monitors.get("slow")) or not subscriber.waiting:
                for step in range(5):
                    broadcaster.broadcast(
                        JobProgress(job_id=f"job-{jobs}", worker_id="w", progress=step / 5)
                    )
                broadcaster.broadcast(completed(jobs))
                jobs += 1
                await asyncio.sleep(0)
            for _ in range(100):
                for step in range(5):
                    broadcaster.broadcast(
                        JobProgress(job_id=f"job-{jobs}", worker_id="w", progress=step / 5)
                    )
                broadcaster.broadcast(completed(jobs))
                jobs += 1
            await asyncio.sleep(0)
            conflated = broadcaster.stats().conflated_total
            assert conflated > 0
            swarm.read(peer)
            await asyncio.to_thread(
                swarm.wait_for,
                lambda: bool(peer.frames) and f'"job-{jobs - 1}"'.encode() in peer.frames[-1],
            )
            outcomes = [
                frame["job_id"] for frame in peer.decoded() if frame["type"] == "complete_job"
            ]
            assert outcomes == [f"job-{number}" for number in range(jobs)]
            # What is left of a job's progress stands before its outcome, and only grows.
            for earlier, later in pairwise(peer.decoded()[1:]):
                if earlier.get("job_id") == later.get("job_id"):
                    assert earlier["type"] == "update_job_progress"
                    assert earlier["progress"] < later.get("progress", 2)
            print(f"\n{jobs} outcomes of {jobs}, in order; {conflated} progress frames conflated")

    asyncio.run(scenario())


@pytest.mark.soak
def test_the_others_do_not_wait(swarm: Swarm) -> None:
    """Prints how late a probe is told of outcomes, without a stalled reader and beside one (R5).

    The two are measured in turn, in one run, while the other peers are served too. Nothing is
    asserted of the times: they are for a quiet machine to show, and for a person to judge.
    """

    async def latency(stalled: int) -> list[float]:
        broadcaster = EventBroadcaster(outbox_limit=64 * 1024 * 1024, stall_limit=60.0)
        peers = Swarm()
        try:
            async with serve(broadcaster, None, None, sock=listener(), grace=2.0) as server:
                slow = await connect(server, peers, stalled)
                while stalled and broadcaster.stats().behind < stalled:
                    broadcaster.broadcast(completed(0))
                    await asyncio.sleep(0)
                async with websockets_connect(
                    f"ws://127.0.0.1:{server.port}/ws/monitor/probe"
                ) as probe:
                    await probe.recv()
                    took = [await one(broadcaster, probe) for _ in range(500)]
                for peer in slow:
                    peer.socket.close()
                return took
        finally:
            await asyncio.to_thread(peers.close)

    async def one(broadcaster: EventBroadcaster, probe: ClientConnection) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        broadcaster.broadcast(completed(1))
        await probe.recv()
        return loop.time() - began

    async def scenario() -> None:
        alone, beside = [], []
        for _ in range(3):
            alone += sorted(await latency(0))
            beside += sorted(await latency(1))
        for took in (alone, beside):
            assert len(took) == 1500
            took.sort()
        p99 = [took[int(len(took) * 0.99)] * 1000 for took in (alone, beside)]
        print(
            f"\np99 of a probe among {PEERS} peers: {p99[0]:.2f} ms, beside one stalled reader "
            f"{p99[1]:.2f} ms: {p99[1] / p99[0]:.2f} times (goal 1.2)"
        )

    asyncio.run(scenario())


def test_shutdown_with_stalled_readers(swarm: Swarm) -> None:
    """Everyone who reads gets what was broadcast and then 1001; nothing is left running (R8)."""

    async def scenario() -> None:
        broadcaster = EventBroadcaster(stall_limit=60.0)
        server = await serve(broadcaster, None, None, sock=listener(), grace=2.0)
        stalled = PEERS // 10
        slow = await connect(server, swarm, stalled)
        sent = 0
        while broadcaster.stats().behind < stalled:
            broadcaster.broadcast(completed(sent))
            sent += 1
            await asyncio.sleep(0)
        for _ in range(10):
            broadcaster.broadcast(completed(sent))
            sent += 1
        await server.close()
        healthy = [peer for peer in swarm.peers if peer not in slow]
        await asyncio.to_thread(
            swarm.wait_for, lambda: all(peer.ended.is_set() for peer in healthy)
        )
        assert {peer.close_code for peer in healthy} == {1001}
        assert {len(peer.frames) for peer in healthy} == {sent + 1}
        assert len(asyncio.all_tasks()) == 1
        assert broadcaster.stats().monitors == 0
        print(
            f"\n{len(healthy)} of {len(healthy)} readers got all {sent} outcomes and 1001; "
            f"{stalled} stalled ones were aborted; 0 tasks left"
        )

    asyncio.run(scenario())
