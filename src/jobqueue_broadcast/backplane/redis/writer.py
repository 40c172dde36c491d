"""A node's writing: payloads and probes into Redis, in batches, by one task."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from jobqueue_broadcast.backplane.redis._client import FAULTS, AsyncClient
from jobqueue_broadcast.backplane.redis.entries import Command, append, sequence_of
from jobqueue_broadcast.backplane.redis.health import Health
from jobqueue_broadcast.backplane.redis.outgoing import Item, Outgoing
from jobqueue_broadcast.backplane.redis.settings import Settings

__all__ = ["Writer"]

logger = logging.getLogger("jobqueue_broadcast")

_BATCH = 256
_BATCH_BYTES = 256 * 1024
_PROBE_TTL = 60
_ASIDE_LIMIT = 100_000

Aside = tuple[Command, asyncio.Future[Any] | None]


class Writer:
    """Appends what `out` holds; tells the reader where its probes are.

    Args:
        settings: See there.
        health: Told how it goes.
        out: What is to be appended.
    """

    def __init__(self, settings: Settings, health: Health, out: Outgoing) -> None:
        self._settings = settings
        self._health = health
        self._out = out
        self._aside: deque[Aside] = deque()
        self._flying: list[Aside] = []
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._reconnect = False
        self.unheard: list[tuple[int, float]] = []
        """The probes appended and not heard: sequence, and when by the steady clock."""
        self.published = 0
        self.aside_dropped = 0

    def publish(self, payload: bytes) -> None:
        """Queue a payload; raises `BackplaneFull` when there is no room."""
        self._out.put(payload)
        self._wake.set()

    def aside(self, command: Command, answer: asyncio.Future[Any] | None = None) -> None:
        """Queue a command that appends nothing; one without `answer` is repeated until it is done.

        In order with the other commands, payloads excepted; it must do no harm to do it twice.
        """
        if len(self._aside) >= _ASIDE_LIMIT:
            self.aside_dropped += 1
            dropped = self._aside.popleft()[1]
            if dropped is not None and not dropped.done():
                dropped.set_exception(OSError("too many commands wait for Redis"))
        self._aside.append((command, answer))
        self._wake.set()

    def send_again(self, *, all_kept: bool) -> None:
        """Append again what has not come back, or everything that is kept; repeats do no harm."""
        self._out.again(all_kept=all_kept)
        self._wake.set()

    def reconnect(self) -> None:
        """Leave the connection for a new one."""
        self._reconnect = True
        self._wake.set()

    async def flush(self, within: float) -> bool:
        """Wait until nothing waits to be appended; return false after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while len(self._out):
                    self._drained.clear()
                    await self._drained.wait()
        except TimeoutError:
            logger.warning("%d payloads were not published", len(self._out))
            return False
        return True

    async def run(self) -> None:
        """Append, and reconnect, until cancelled."""
        attempt = 0
        while True:
            client = AsyncClient(self._settings.url, self._settings.timeout)
            self._reconnect = False
            try:
                attempt += 1
                async for _ in self._append(client):
                    attempt = 0
            except FAULTS as error:
                self._put_back(error)
                self._health.failed("writer", error)
            finally:
                await client.close()
            await self._health.pause(attempt)

    async def _append(self, client: AsyncClient) -> AsyncIterator[None]:
        """Append what waits, and probes; yields after each answer."""
        next_probe = 0.0
        while not self._reconnect:
            now = time.monotonic()
            probing = now >= next_probe
            items = self._out.take(_BATCH, _BATCH_BYTES)
            while self._aside and len(self._flying) < _BATCH:
                self._flying.append(self._aside.popleft())
            if not items and not probing and not self._flying:
                await self._until_woken(next_probe - now)
                continue
            commands, places = self._commands(items)
            if probing:
                next_probe = now + self._settings.probe_interval
                places.append(len(commands))
                key = self._settings.keys.probe(self._settings.node)
                commands += [("XADD", key, "MAXLEN", 1, "*", "t", 1), ("EXPIRE", key, _PROBE_TTL)]
            first_aside = len(commands)
            commands += [command for command, _ in self._flying]
            # All or nothing: one refused alone would lose its place in the order of this node.
            answers = await client.transact(commands)
            ids = [sequence_of(answers[place]) for place in places]
            if probing:
                self.unheard.append((ids.pop(), time.monotonic()))
            self._note_sent(ids, answers[first_aside:])
            yield

    def _commands(self, items: list[Item]) -> tuple[list[Command], list[int]]:
        """Return the commands that append payloads, and where among them each `XADD` is."""
        settings = self._settings
        commands: list[Command] = []
        places: list[int] = []
        for item in items:
            places.append(len(commands))
            commands += append(
                settings.keys,
                settings.node,
                item.counter,
                item.payload,
                retained=settings.retained,
                job_ttl=settings.job_ttl,
            )
        return commands, places

    def _note_sent(self, sequences: list[int], asides: list[Any]) -> None:
        self._out.sent(sequences)
        self.published += len(sequences)
        for (_, future), answer in zip(self._flying, asides, strict=True):
            if future is not None and not future.done():
                future.set_result(answer)
        self._flying = []
        if not len(self._out):
            self._drained.set()
        self._health.succeeded("writer")

    def _put_back(self, error: BaseException) -> None:
        """Queue again what was under way; tell who waits for an answer that there is none."""
        self._out.failed()
        # What was answered for may be lost too, if another server took over.
        self._out.again(all_kept=False)
        for _, future in self._flying:
            if future is not None and not future.done():
                future.set_exception(OSError(str(error)))
        self._aside.extendleft(aside for aside in reversed(self._flying) if aside[1] is None)
        self._flying = []

    async def _until_woken(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass
