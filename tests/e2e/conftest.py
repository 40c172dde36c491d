"""Fixtures: a host, servers for it on real sockets, and peers; all gone when the test ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.adapters.websockets import BroadcastServer, serve
from tests.e2e.peers import Host, Peer, peer

Start: TypeAlias = Callable[..., Awaitable[BroadcastServer]]
Connect: TypeAlias = Callable[..., Awaitable[Peer]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def host() -> Host:
    return Host(EventBroadcaster())


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start(host: Host, stack: AsyncExitStack) -> Start:
    """Serve the host: `server = await start(authenticate=...)`, with arguments of `serve`."""

    async def start(**arguments: Any) -> BroadcastServer:
        arguments = {"submit": host.submit, "cancel": host.cancel, **arguments}
        broadcaster = arguments.pop("broadcaster", host.broadcaster)
        return await stack.enter_async_context(serve(broadcaster, "localhost", 0, **arguments))

    return start


@pytest.fixture
def connect(stack: AsyncExitStack) -> Connect:
    """Connect a peer, and read its greeting: `monitor = await connect(server, "/ws/monitor/m")`."""

    async def connect(server: BroadcastServer, path: str, **arguments: Any) -> Peer:
        connected = await stack.enter_async_context(peer(server.port, path, **arguments))
        await connected.next()
        return connected

    return connect
