"""A peer that vanishes without a word is reaped by keepalive (R7)."""

from __future__ import annotations

import asyncio

import pytest

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.adapters.websockets import serve
from tests.adapters.raw import Raw, frame, in_loop, request, until

INTERVAL, TIMEOUT = 0.2, 0.3


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("target", ["/ws/monitor/m", "/ws/client/c"])
def test_who_answers_no_ping_is_reaped_and_who_does_is_not(target: str, direct: bool) -> None:
    @in_loop
    async def scenario() -> None:
        broadcaster = EventBroadcaster()
        async with serve(
            broadcaster,
            "127.0.0.1",
            0,
            direct=direct,
            ping_interval=INTERVAL,
            ping_timeout=TIMEOUT,
            close_timeout=0.2,
        ) as server:
            alive = await Raw.connect(server.port, request("/ws/monitor/alive"))
            answering = asyncio.create_task(answer_pings(alive))
            # Nothing it does says that it is gone: to the server, a half-open connection.
            silent = await Raw.connect(server.port, request(target))
            await until(lambda: server.endpoint.stats().connections == 2)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            await until(lambda: server.endpoint.stats().connections == 1)
            assert loop.time() - begun <= INTERVAL + TIMEOUT + 1.0
            assert [each.id for each in broadcaster.subscribers()] == ["alive"]
            silent.close()
            answering.cancel()
            alive.close()

    scenario()


async def answer_pings(peer: Raw) -> None:
    await peer.status()
    while (found := await peer.frame()) is not None:
        if found[0] == 0x89:
            await peer.send(frame(found[1], opcode=10))
