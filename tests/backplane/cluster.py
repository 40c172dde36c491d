"""Several nodes in one process, each with a monitor that records what it is sent."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.backplane.redis import BackplaneState, RedisBackplane
from jobqueue_broadcast.testing import RecordingConnection

__all__ = ["DEFAULTS", "QUICK", "Node", "cluster", "node", "until"]

# Limits small enough for a test: a black hole is noticed after 0.6 s at most.
QUICK: dict[str, Any] = {
    "block": 0.2,
    "timeout": 0.4,
    "probe_interval": 0.1,
    "deaf_after": 0.5,
    "retry_limit": 0.1,
}

# Those of `RedisBackplane` itself, for tests that take their time.
DEFAULTS: dict[str, Any] = {
    name: inspect.signature(RedisBackplane).parameters[name].default for name in QUICK
}


class Node:
    """A broadcaster on a Redis backplane, and a monitor of it.

    Args:
        url: The Redis.
        broadcaster: Options of the broadcaster.
        options: Of the backplane.
    """

    def __init__(self, url: str, broadcaster: dict[str, Any] | None = None, **options: Any) -> None:
        self.states: list[BackplaneState] = []
        limits = {**QUICK, **options}
        self.backplane = RedisBackplane(url, on_state=self.states.append, **limits)
        self.broadcaster = EventBroadcaster(backplane=self.backplane, **(broadcaster or {}))
        self.monitor = RecordingConnection()
        self.broadcaster.add_monitor("monitor", self.monitor, resume="new")

    @property
    def frames(self) -> list[dict[str, Any]]:
        return self.monitor.frames

    def told(self, kind: str) -> list[dict[str, Any]]:
        """The frames of one type that the monitor was sent, in order."""
        return [frame for frame in self.frames if frame["type"] == kind]

    def order(self) -> list[tuple[str, Any]]:
        """The job events the monitor was sent, in order."""
        return [
            (frame["job_id"], frame.get("progress", frame["type"]))
            for frame in self.frames
            if "job_id" in frame
        ]

    def statuses(self) -> list[str]:
        return [state.status for state in self.states]


async def until(condition: Callable[[], object], within: float = 15.0) -> None:
    """Wait for a condition; the limit only ends a test that hangs."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what is polled knows nothing of events
            await asyncio.sleep(0.01)


@asynccontextmanager
async def node(url: str, **options: Any) -> AsyncIterator[Node]:
    made = Node(url, **options)
    async with made.backplane:
        await until(lambda: made.backplane.ready)
        yield made


@asynccontextmanager
async def cluster(url: str, count: int, **options: Any) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(node(url, **options)) for _ in range(count)]
