"""Publishing from worker processes: events into the stream, without the server's half.

::

    with Publisher("redis://localhost") as publisher:
        publisher.publish(JobProgress(job_id="job-123", worker_id="worker-1", progress=0.5))
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from typing import Self
from uuid import uuid4

from jobqueue_broadcast.backplane.redis._client import FAULTS, AsyncClient, SyncClient, plainly
from jobqueue_broadcast.backplane.redis.entries import Command, Keys, append
from jobqueue_broadcast.clock import SystemClock
from jobqueue_broadcast.errors import BackplaneUnavailable
from jobqueue_broadcast.events import Event, encode, stamped
from jobqueue_broadcast.topics import event_topics

__all__ = ["AsyncPublisher", "Publisher"]

_PAUSE = 0.05
_MOST_PAUSE = 0.5


class _Identity:
    """Who publishes: one name and one count per process, which is how repeats are known."""

    __slots__ = ("counter", "name", "pid")

    def __init__(self) -> None:
        self.name = uuid4().hex[:16]
        self.counter = itertools.count(1)  # `next` is one step of the interpreter: no lock
        self.pid = os.getpid()


class _Settings:
    """What both publishers are made with."""

    __slots__ = ("job_ttl", "keys", "patience", "retained", "timeout", "url")

    def __init__(
        self,
        url: str,
        prefix: str,
        retained: int,
        job_ttl: int,
        timeout: float,
        patience: float,
    ) -> None:
        self.url = url
        self.keys = Keys(prefix)
        self.retained = retained
        self.job_ttl = job_ttl
        self.timeout = timeout
        self.patience = patience

    def commands(self, identity: _Identity, event: Event) -> list[Command]:
        """Check and stamp an event, as `broadcast` does, and return what appends it."""
        event_topics(type(event))  # raises for what is no event, or was not declared
        payload = encode(stamped(event, SystemClock().now_ms()))
        return append(
            self.keys,
            identity.name,
            next(identity.counter),
            payload,
            retained=self.retained,
            job_ttl=self.job_ttl,
        )

    def unavailable(self, error: BaseException) -> BackplaneUnavailable:
        """Return the error to raise when patience is over."""
        return BackplaneUnavailable(
            f"the event was not published: Redis did not take it within {self.patience:g} s"
            f" ({plainly(error)})"
        )


class Publisher:
    """Publishes events from any thread of a worker process, and after a fork.

    `publish` returns when Redis has taken the event; the events of one thread keep their order.
    Where an answer is lost the event is sent again, and the servers show it once.

    Args:
        url: `redis://`, `rediss://` or `unix://`, the same as the servers'.
        prefix: The same as the servers'.
        retained: Entries the stream keeps, about.
        job_ttl: Seconds a job's outcome is kept beside the stream.
        timeout: Seconds each attempt may wait for Redis.
        patience: Seconds after which an attempt that failed is not followed by another.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "jobqueue-broadcast",
        retained: int = 100_000,
        job_ttl: int = 3600,
        timeout: float = 2.0,
        patience: float = 5.0,
    ) -> None:
        self._settings = _Settings(url, prefix, retained, job_ttl, timeout, patience)
        self._mine = self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def publish(self, event: Event) -> None:
        """Publish an event.

        Raises:
            InvalidArgument: Not an `Event`, not declared, or with values that JSON cannot hold.
            BackplaneUnavailable: Redis could not be reached for `patience` seconds. The event may
                have been taken nonetheless, if it is the answer that was lost.
        """
        commands = self.commands(event)
        client = self._mine[1]
        until = time.monotonic() + self._settings.patience
        pause = _PAUSE
        while True:
            try:
                client.transact(commands)
                return
            except FAULTS as error:
                if time.monotonic() + pause > until:
                    raise self._settings.unavailable(error) from error
            time.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE)

    def commands(self, event: Event) -> list[Command]:
        """Return the Redis commands that publish an event, for a transaction of the caller's own.

        So that what a program changes in Redis and the event that tells of it happen together or
        not at all, whenever it is killed. Each command is a tuple of its words. To repeat them does
        no harm: the event is shown once. On a cluster, all keys must be in one slot.

        Raises:
            InvalidArgument: As `publish`.
        """
        if self._mine[0].pid != os.getpid():
            # A fork: neither connections nor the count may be shared with the parent.
            self._mine = self._begin()
        return self._settings.commands(self._mine[0], event)

    def close(self) -> None:
        """Close all connections."""
        self._mine[1].close()

    def _begin(self) -> tuple[_Identity, SyncClient]:
        return _Identity(), SyncClient(self._settings.url, self._settings.timeout)


class AsyncPublisher:
    """Publishes events from an asyncio program; like `Publisher`, with `await`.

    Events are sent one after the other, in the order of the calls.

    Args:
        url: As above, like all that follow.
        prefix: As above.
        retained: As above.
        job_ttl: As above.
        timeout: As above.
        patience: As above.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "jobqueue-broadcast",
        retained: int = 100_000,
        job_ttl: int = 3600,
        timeout: float = 2.0,
        patience: float = 5.0,
    ) -> None:
        self._settings = _Settings(url, prefix, retained, job_ttl, timeout, patience)
        self._identity = _Identity()
        self._client = AsyncClient(url, timeout)
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def publish(self, event: Event) -> None:
        """Publish an event; returns when Redis has taken it.

        Raises:
            InvalidArgument: Not an `Event`, not declared, or with values that JSON cannot hold.
            BackplaneUnavailable: Redis could not be reached for `patience` seconds.
        """
        commands = self.commands(event)
        until = time.monotonic() + self._settings.patience
        pause = _PAUSE
        async with self._lock:
            while True:
                try:
                    await self._client.transact(commands)
                    return
                except FAULTS as error:
                    if time.monotonic() + pause > until:
                        raise self._settings.unavailable(error) from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, _MOST_PAUSE)

    def commands(self, event: Event) -> list[Command]:
        """Return the Redis commands that publish an event; like `Publisher.commands`."""
        return self._settings.commands(self._identity, event)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.close()
