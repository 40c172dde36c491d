"""Connections that come and go leave no descriptor, task, index entry or byte behind (R9)."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import tracemalloc

import pytest

from jobqueue_broadcast import EventBroadcaster, JobProgress
from jobqueue_broadcast.adapters.websockets import BroadcastServer, serve
from tests.faults.swarm import RawPeer

_RESET = struct.pack("ii", 1, 0)


def visit(port: int, number: int) -> None:
    """Connect, perhaps say something, and leave: cleanly, without a word, or with a reset."""
    kind = ("monitor", "client")[number % 2]
    peer = RawPeer(port, f"/ws/{kind}/visitor-{number}?resume=new")
    if kind == "client":
        peer.send({"type": "subscribe_progress", "job_id": f"job-{number}"})
    if number % 3 == 0:
        peer.send_close(1000)
        while peer.socket.recv(4096):
            pass
    elif number % 3 == 1:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    peer.socket.close()


async def settled(broadcaster: EventBroadcaster, server: BroadcastServer) -> None:
    """Wait until every visitor is gone from the server."""
    async with asyncio.timeout(60):
        while broadcaster.subscribers() or server.endpoint.stats().connections:
            broadcaster.broadcast(JobProgress(job_id="job-1", worker_id="w", progress=0.5))
            await asyncio.sleep(0.01)


async def churn(visits: int) -> None:
    broadcaster = EventBroadcaster(client_retention=0.0, history_limit=10)
    async with serve(broadcaster, "127.0.0.1", 0, tick_interval=0.05) as server:

        async def round_of(count: int, first: int) -> None:
            for start in range(first, first + count, 50):
                await asyncio.gather(
                    *(
                        asyncio.to_thread(visit, server.port, number)
                        for number in range(start, min(start + 50, first + count))
                    )
                )
            await settled(broadcaster, server)
            broadcaster.tick()

        await round_of(200, 0)  # what is made once and kept: threads, caches, loggers
        gc.collect()
        tracemalloc.start()
        bytes_before = tracemalloc.get_traced_memory()[0]
        descriptors, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
        await round_of(visits, 1000)
        gc.collect()
        left = tracemalloc.get_traced_memory()[0] - bytes_before
        tracemalloc.stop()
        stats = broadcaster.stats()
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert len(asyncio.all_tasks()) == tasks
        assert (stats.monitors, stats.clients, stats.clients_away) == (0, 0, 0)
        assert (stats.subscriptions, stats.monitor_groups, stats.behind) == (0, 0, 0)
        # Dictionaries keep their size and interned ids their place; a leak grows with the visits.
        assert left < 100_000 + 20 * visits, f"{left} bytes left"
        print(f"\n{visits} visits: 0 descriptors, 0 tasks, 0 entries, {left} bytes left behind")


def test_nothing_is_left_behind() -> None:
    asyncio.run(churn(600))


@pytest.mark.soak
def test_nothing_is_left_behind_in_full() -> None:
    asyncio.run(churn(50_000))
