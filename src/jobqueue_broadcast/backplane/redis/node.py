"""A server's side of Redis: one stream, read by every node, so that all deliver in one order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Self
from uuid import uuid4

from msgspec import Struct

from jobqueue_broadcast.backplane import Claim, Receiver
from jobqueue_broadcast.backplane.redis import peers
from jobqueue_broadcast.backplane.redis._client import FAULTS, plainly
from jobqueue_broadcast.backplane.redis.entries import Keys
from jobqueue_broadcast.backplane.redis.health import Health, OnState
from jobqueue_broadcast.backplane.redis.outgoing import Outgoing
from jobqueue_broadcast.backplane.redis.reader import Reader
from jobqueue_broadcast.backplane.redis.settings import Settings
from jobqueue_broadcast.backplane.redis.writer import Writer
from jobqueue_broadcast.errors import BackplaneUnavailable, InvalidArgument

__all__ = ["RedisBackplane", "RedisStats"]

logger = logging.getLogger("jobqueue_broadcast")

_KEEP = 10.0  # twice the 5 s within which every node notices that the stream was emptied


class RedisStats(Struct, frozen=True, kw_only=True):
    """The figures of a Redis backplane. Those named `..._total` only grow."""

    ready: bool
    waiting: int
    """Payloads to be published; at most `queue_limit`."""
    waiting_bytes: int
    not_back: int
    """Payloads published and not yet read back."""
    published_total: int
    read_total: int
    repeats_total: int
    """Entries dropped because they were published a second time, after a broken connection."""
    sent_again_total: int
    poisoned_total: int
    """Entries dropped because they are not ours, or because taking them failed."""
    outages_total: int
    """How often Redis could not be reached, did not answer, or was deaf."""
    deaf_total: int
    """How often what was published did not come back, though Redis answered."""
    trimmed_total: int
    flushed_total: int
    epochs_total: int
    """How often another node had begun another epoch."""


class RedisBackplane:
    """All events of all nodes, in the order of one Redis stream.

    ::

        backplane = RedisBackplane("redis://localhost")
        broadcaster = EventBroadcaster(backplane=backplane)
        async with backplane:
            ...

    Belongs to one event loop (asyncio), like the broadcaster attached to it.

    Args:
        url: `redis://`, `rediss://` or `unix://`; Redis 6.2 or later, or Valkey.
        prefix: Begins every key; servers and publishers with the same prefix share events.
        retained: Entries the stream keeps, about; a node further behind has a gap.
        job_ttl: Seconds a job's outcome can be looked up after the stream was trimmed past it.
        queue_limit: Payloads that may wait while Redis is away; past it `publish` raises.
        queue_byte_limit: Bytes of them.
        block: Seconds a read waits for an entry. `block + timeout` bounds how long a black hole
            goes unnoticed.
        timeout: Seconds Redis may take to answer.
        probe_interval: Seconds between the probes a node sends itself.
        deaf_after: Seconds after which a probe that was not heard is an outage.
        retry_limit: Seconds at most between attempts to reconnect, with jitter.
        on_state: Called with each change of state, on the loop; must not block.

    Raises:
        InvalidArgument: A limit cannot be right.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "jobqueue-broadcast",
        retained: int = 100_000,
        job_ttl: int = 3600,
        queue_limit: int = 10_000,
        queue_byte_limit: int = 16 * 1024 * 1024,
        block: float = 1.0,
        timeout: float = 2.0,
        probe_interval: float = 1.0,
        deaf_after: float = 3.0,
        retry_limit: float = 1.0,
        on_state: OnState | None = None,
    ) -> None:
        if retained < 1 or job_ttl < 1 or queue_limit < 1:
            raise InvalidArgument("retained, job_ttl, queue_limit: expected 1 or more")
        if min(block, timeout, probe_interval, deaf_after) < 0.001:
            raise InvalidArgument(
                "block, timeout, probe_interval, deaf_after: expected a millisecond or more"
            )
        self.node = uuid4().hex[:16]
        self.keys = Keys(prefix)
        self._settings = Settings(
            url=url,
            keys=self.keys,
            node=self.node,
            retained=retained,
            job_ttl=job_ttl,
            block=block,
            timeout=timeout,
            probe_interval=probe_interval,
            deaf_after=deaf_after,
        )
        self._health = Health(on_state, retry_limit)
        self._out = Outgoing(queue_limit, queue_byte_limit, _KEEP, queue_limit)
        self._writer = Writer(self._settings, self._health, self._out)
        self._reader: Reader | None = None
        self._running = False
        self._task: asyncio.Task[None] | None = None

    # --- what a broadcaster does -----------------------------------------------------------------

    def attach(self, receiver: Receiver) -> None:
        """Give back payloads to this receiver, once `run` has been called."""
        self._reader = Reader(self._settings, self._health, self._out, self._writer, receiver)

    def publish(self, payload: bytes) -> None:
        """Queue a payload for the stream; it comes back with its sequence.

        Raises:
            BackplaneFull: Redis is away, and `queue_limit` or `queue_byte_limit` is reached.
        """
        self._writer.publish(payload)

    async def look_up(self, job_id: str) -> list[bytes]:
        """Return what made the state of a job, for one the stream no longer tells of.

        Returns nothing when Redis does not answer in time.
        """
        try:
            return await self._attached().look_up(job_id)
        except FAULTS as error:
            logger.warning("could not look up a job: %s", plainly(error))
            return []

    async def reach(self, sequence: int, within: float = 2.0) -> bool:
        """Wait until this node has read as far as a position another node gave out.

        Returns whether it has; false after `within` seconds.
        """
        return await self._attached().reach(sequence, within)

    async def claim(self, kind: str, peer_id: str, owner: str) -> Claim:
        """Ask for an id on behalf of a principal, for a new connection.

        Raises:
            BackplaneUnavailable: There is no answer in time.
        """
        answer = asyncio.get_running_loop().create_future()
        # Behind what this node still has to say of the same client.
        self._writer.aside(peers.claim(self.keys, kind, peer_id, owner), answer)
        try:
            async with asyncio.timeout(self._settings.timeout):
                return peers.claimed(await answer)
        except FAULTS as error:
            raise BackplaneUnavailable(f"cannot ask whose an id is: {plainly(error)}") from error

    def hold(self, kind: str, peer_id: str, owner: str, number: int) -> None:
        """Say that a connection still has the id; to be said about once a minute."""
        self._writer.aside(peers.hold(self.keys, kind, peer_id, owner, number))

    def release(self, kind: str, peer_id: str, number: int, retention: float) -> None:
        """Give up an id; who had it keeps it, and its subscriptions, for `retention` seconds."""
        self._writer.aside(peers.release(self.keys, kind, peer_id, number, retention))

    def took(self, sequence: int, seconds: float) -> None:
        """Say that a client took the outcome with this sequence; it is known for so long."""
        self._writer.aside(peers.took(self.keys, sequence, seconds))

    def report(self, sequence: int, seconds: float, call: Callable[[bool], object]) -> None:
        """Ask whether this node is the first, of all, to report that nobody took an outcome.

        `call` is given the answer, on the event loop: true also when Redis does not answer in time.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        too_late = loop.call_later(self._settings.timeout, answer.cancel)

        def answered(_: object) -> None:
            too_late.cancel()
            # Rather reported twice than never.
            lost = answer.cancelled() or answer.exception() is not None
            call(lost or answer.result() is not None)

        answer.add_done_callback(answered)
        self._writer.aside(peers.report(self.keys, sequence, seconds), answer)

    def keep(self, client_id: str, job_id: str, since: tuple[int, int] | None) -> None:
        """Remember a client's subscription for the node it may come to next; `None`: it ended."""
        for command in peers.keep(self.keys, client_id, job_id, since):
            self._writer.aside(command)

    # --- what a host or an adapter does ----------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it is being run; an adapter runs it where nobody else does."""
        return self._running or self._task is not None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.flush()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def run(self) -> None:
        """Connect, build the states from the stream, read and publish, until cancelled.

        Reconnects for as long as it takes. Await `flush` before cancelling it, so that nothing
        that was broadcast is left behind.

        Raises:
            InvalidArgument: No broadcaster was given this backplane, or it is being run already.
        """
        if self._running:
            raise InvalidArgument("expected a backplane that is not being run already")
        reader = self._attached()
        self._running = True
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reader.run())
                # What was broadcast before the states were built is news, and not part of them.
                await reader.built.wait()
                tasks.create_task(self._writer.run())
        finally:
            self._running = False
            await reader.close()

    async def flush(self, within: float = 2.0) -> bool:
        """Wait until everything published is in Redis; return false after `within` seconds."""
        return await self._writer.flush(within)

    @property
    def ready(self) -> bool:
        """Whether events get through, as far as is known: for a readiness probe."""
        return self._health.ready

    async def wait_ready(self) -> None:
        """Wait until `ready`."""
        await self._health.wait_ready()

    def stats(self) -> RedisStats:
        """Return the figures of this backplane."""
        reader, health = self._attached(), self._health
        return RedisStats(
            ready=self.ready,
            waiting=len(self._out),
            waiting_bytes=self._out.size,
            not_back=self._out.not_back,
            published_total=self._writer.published,
            read_total=reader.read,
            repeats_total=reader.repeats,
            sent_again_total=self._out.repeated,
            poisoned_total=reader.poisoned,
            outages_total=health.outages,
            deaf_total=reader.deaf,
            trimmed_total=health.breaks["trimmed"],
            flushed_total=health.breaks["flushed"],
            epochs_total=health.breaks["epoch"],
        )

    def _attached(self) -> Reader:
        if self._reader is None:
            raise InvalidArgument("RedisBackplane: give it to an EventBroadcaster first")
        return self._reader
