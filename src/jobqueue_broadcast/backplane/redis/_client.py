"""redis-py as it is used here: plain answers, no retries of its own, and a limit on every wait.

The limit is put around each whole exchange: redis-py's `socket_timeout` knows nothing of `BLOCK`
(redis-py issue 3138) and its asyncio client counts it over many reads (issue 3454). Its own retries
(three by default since version 6) would repeat an `XADD` behind our back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from jobqueue_broadcast.backplane.redis.entries import Command

__all__ = ["FAULTS", "AsyncClient", "SyncClient", "plainly"]

FAULTS = (RedisError, OSError, EOFError, asyncio.IncompleteReadError)
"""What an exchange may raise: it was refused, broke off, or took too long (`TimeoutError`)."""

_RAW = ("XREAD", "XRANGE", "XREVRANGE", "XADD", "GET", "LRANGE", "HVALS", "EVAL", "SET")


def plainly(error: BaseException) -> str:
    """Return what went wrong in a few words; a time-out carries none of its own."""
    return str(error) or type(error).__name__


class AsyncClient:
    """A connection to Redis, for one asyncio task at a time.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py takes it.
        timeout: Seconds an exchange may take, connecting included.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        client: Any = redis.asyncio.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            protocol=2,
            socket_timeout=None,
            # Also bounds the closing of a connection into a black hole.
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            max_connections=1,
        )
        for name in _RAW:
            client.set_response_callback(name, _as_it_is)
        self._redis = client

    async def call(self, *commands: Command, wait: float = 0.0) -> list[Any]:
        """Send commands in one go and return their answers.

        Args:
            commands: What to send.
            wait: Seconds a command may block, on top of the time-out.
        """
        return await self._exchange(commands, wait, transaction=False)

    async def transact(self, commands: Sequence[Command]) -> list[Any]:
        """Do all of the commands or none of them, and return their answers."""
        return await self._exchange(commands, 0.0, transaction=True)

    async def close(self) -> None:
        """Close the connection, whatever state it is in."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._redis.aclose()
        except FAULTS:
            pass

    async def _exchange(
        self, commands: Sequence[Command], wait: float, *, transaction: bool
    ) -> list[Any]:
        async with asyncio.timeout(self._timeout + wait):
            async with self._redis.pipeline(transaction=transaction) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                answers: list[Any] = await pipeline.execute()
                return answers


class SyncClient:
    """A pool of connections to Redis, for any number of threads.

    Args:
        url: As above.
        timeout: Seconds each read and write of a socket may take.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._redis: Any = redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            protocol=2,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )

    def transact(self, commands: Sequence[Command]) -> list[Any]:
        """Do all of the commands or none of them, and return their answers."""
        with self._redis.pipeline(transaction=True) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = pipeline.execute()
            return answers

    def close(self) -> None:
        """Close all connections."""
        self._redis.close()


def _as_it_is(answer: Any, **_: Any) -> Any:
    return answer
