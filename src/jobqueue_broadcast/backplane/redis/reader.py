"""A node's reading: the stream to the broadcaster, entry by entry, and its states from the past."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

from jobqueue_broadcast.backplane import Receiver
from jobqueue_broadcast.backplane.redis._client import FAULTS, AsyncClient
from jobqueue_broadcast.backplane.redis.entries import (
    Command,
    Entry,
    begin,
    job_payloads,
    sequence_of,
)
from jobqueue_broadcast.backplane.redis.health import Health
from jobqueue_broadcast.backplane.redis.outgoing import Outgoing
from jobqueue_broadcast.backplane.redis.repeats import Repeats
from jobqueue_broadcast.backplane.redis.rounds import (
    Break,
    Cursor,
    continuity,
    entries_of,
    read,
    read_round,
    why_broken,
)
from jobqueue_broadcast.backplane.redis.settings import Settings
from jobqueue_broadcast.backplane.redis.writer import Writer

__all__ = ["Reader"]

logger = logging.getLogger("jobqueue_broadcast")

_READ = 256  # entries at once: about 10 ms of the event loop
_ASK = 500

# One node's word, when several notice at once that the stream does not continue what it was.
_REPLACE_EPOCH = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end"
)


class Deaf(OSError):
    """What is published does not come back: reader and writer are at different servers."""


class Reader:
    """Gives the receiver every entry of the stream, and notices when it cannot.

    Args:
        settings: See there.
        health: Told how it goes.
        out: Told what came back.
        writer: Told to append again what may be lost.
        receiver: What is given the entries.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        out: Outgoing,
        writer: Writer,
        receiver: Receiver,
    ) -> None:
        self._settings = settings
        self._health = health
        self._out = out
        self._writer = writer
        self._receiver = receiver
        self._cursor: Cursor | None = None
        self._owed: Break | None = None
        self._seen = Repeats()  # since the states were last built
        self._shown = Repeats()  # ever
        self._advanced = asyncio.Event()
        self._asking: AsyncClient | None = None
        self._ask_lock = asyncio.Lock()
        self.built = asyncio.Event()
        """Set once the states were built for the first time."""
        self.read = 0
        self.repeats = 0
        self.poisoned = 0
        self.deaf = 0

    async def reach(self, sequence: int, within: float) -> bool:
        """Wait until everything up to a sequence was read; return false after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                while self._cursor is None or self._cursor.sequence < sequence:
                    self._advanced.clear()
                    await self._advanced.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Close the connection on which jobs are looked up."""
        if self._asking is not None:
            await self._asking.close()

    async def run(self) -> None:
        """Read, and reconnect, until cancelled."""
        attempt = 0
        while True:
            client = AsyncClient(self._settings.url, self._settings.timeout)
            try:
                attempt += 1
                async for _ in self._follow(client):
                    attempt = 0
            except FAULTS as error:
                self._health.failed("reader", error)
            finally:
                await client.close()
            await self._health.pause(attempt)

    async def _follow(self, client: AsyncClient) -> AsyncIterator[None]:
        """Read entry after entry; yields after each read that went well."""
        if self._cursor is not None:
            self._cursor.probe = b"0-0"
        self._writer.unheard.clear()
        block = 0.0
        while True:
            cursor = self._cursor or await self._rebuild(client)
            commands = self._commands(cursor, block)
            answer = read_round(self._settings.keys, await client.call(*commands, wait=block))
            if not continuity(cursor, answer):
                await self._note_break(client, cursor)
                continue
            for entry in self._advance(cursor, answer.raw):
                self._deliver(entry)
            self._check_hearing(cursor, answer.probe)
            self._health.succeeded("reader")
            block = self._settings.block
            yield

    def _advance(self, cursor: Cursor, raw: list[Any]) -> list[Entry]:
        """Move the cursor over the entries read; return those of this library."""
        if raw:
            cursor.last, cursor.anchor = raw[-1][0], raw[-1]
            self._advanced.set()
        entries, bad = entries_of(raw)
        self.read += len(raw)
        if bad:
            self.poisoned += bad
            logger.warning("dropped %d entries of the stream that are not ours", bad)
        return entries

    def _deliver(self, entry: Entry) -> None:
        """Give a live entry to the broadcaster, unless it is a repeat."""
        if not self._take(entry):
            return
        receiver = self._receiver
        # A repeat from before the states were built again has its place in the new order, but the
        # peers have seen it.
        give = receiver.receive if self._shown.take(entry.node, entry.counter) else receiver.replay
        self._give(give, entry)

    def _take(self, entry: Entry) -> bool:
        """Note an entry; return whether it holds a payload that is no repeat."""
        if entry.node == self._settings.node.encode():
            self._out.came_back(entry.counter, time.monotonic())
        if entry.payload is None:
            return False
        if self._seen.take(entry.node, entry.counter):
            return True
        self.repeats += 1
        return False

    def _give(self, give: Callable[[int, bytes], None], entry: Entry) -> None:
        try:
            give(sequence_of(entry.id), entry.payload or b"")
        except Exception:
            # Whatever is in the stream, the reader must outlive it.
            self.poisoned += 1
            logger.exception("dropped an entry of the stream that could not be taken")

    def _check_hearing(self, cursor: Cursor, probe: bytes | None) -> None:
        """Raise `Deaf` when a probe was published and is not heard."""
        if probe is not None:
            cursor.probe = probe
            heard = sequence_of(probe)
            unheard = self._writer.unheard
            unheard[:] = [sent for sent in unheard if sent[0] > heard]
            if self._out.missing(cursor.sequence):
                # Answered for and then lost, by a server that took over from another.
                self._writer.send_again(all_kept=False)
        oldest = self._writer.unheard[:1]
        if oldest and time.monotonic() - oldest[0][1] > self._settings.deaf_after:
            self.deaf += 1
            self._writer.reconnect()
            raise Deaf("what was published does not come back")

    async def _note_break(self, client: AsyncClient, cursor: Cursor) -> None:
        """Find out how continuity was lost, tell, and have the states built again."""
        first, epoch = await client.call(
            ("XRANGE", self._settings.keys.events, "-", "+", "COUNT", 1),
            ("GET", self._settings.keys.epoch),
        )
        reason = why_broken(cursor, epoch, first[0] if first else None)
        if reason == "flushed" and epoch == cursor.epoch:
            fresh = uuid4().hex[:16]
            await client.call(
                ("EVAL", _REPLACE_EPOCH, 1, self._settings.keys.epoch, cursor.epoch, fresh)
            )
        self._cursor, self._owed = None, reason
        self._health.broken(reason)
        self._writer.send_again(all_kept=reason != "trimmed")

    async def _rebuild(self, client: AsyncClient) -> Cursor:
        """Build history and states from what the stream holds; tell peers that are there."""
        cursor: Cursor | None = None
        recalled: list[bytes] = []
        while cursor is None:
            if (cursor := await self._replay(client)) is not None:
                (recalled,) = await client.call(("HVALS", self._settings.keys.revocations))
                recalled += await self._unfinished()
                # What was appended meanwhile may be among the recalled. Its place is in the stream:
                # recalled first, it would be known already at its turn, and nobody be told of it.
                cursor = await self._replay_on(client, cursor)
        for payload in recalled:
            self._receiver.recall(payload)
        self._cursor = cursor
        self._receiver.resync("trimmed" if self._owed == "trimmed" else "epoch")
        self._owed = None
        self.built.set()
        self._advanced.set()
        return cursor

    async def _replay(self, client: AsyncClient) -> Cursor | None:
        """Fold the whole stream into the states; `None` when it changed under our hands."""
        _, epoch, first = await client.call(
            ("SET", self._settings.keys.epoch, uuid4().hex[:16], "NX"),
            ("GET", self._settings.keys.epoch),
            ("XRANGE", self._settings.keys.events, "-", "+", "COUNT", 1),
        )
        if not first:
            await client.call(begin(self._settings.keys))
            return None
        cursor = Cursor(epoch, first[0][0])
        self._seen = Repeats()
        self._receiver.restart(epoch.decode(), cursor.sequence)
        return await self._replay_on(client, cursor, first)

    async def _replay_on(
        self, client: AsyncClient, cursor: Cursor, first: list[Any] | None = None
    ) -> Cursor | None:
        """Fold the rest of the stream, which begins with `first`, into the states."""
        while True:
            commands = self._commands(cursor, 0.0)
            answer = read_round(self._settings.keys, await client.call(*commands))
            fresh_start = cursor.anchor is None and answer.raw[:1] != first
            if fresh_start or not continuity(cursor, answer):
                return None
            for entry in self._advance(cursor, answer.raw):
                if self._take(entry):
                    self._shown.take(entry.node, entry.counter)
                    self._give(self._receiver.replay, entry)
            if not answer.raw:
                return cursor

    async def _unfinished(self) -> list[bytes]:
        """Return the milestones of the jobs whose outcome may be among what was missed."""
        job_ids = self._receiver.unfinished()
        found: list[bytes] = []
        for at in range(0, len(job_ids), _ASK):
            found += (await self._milestones(job_ids[at : at + _ASK]))[0]
        return found

    async def look_up(self, job_id: str) -> list[bytes]:
        """Return the milestones kept for a job, once what the stream says of it was read.

        Raises:
            TimeoutError: It was not read in time: what is still to come must come from there.
        """
        found, last = await self._milestones([job_id])
        if not await self.reach(last, self._settings.timeout):
            raise TimeoutError
        return found

    async def _milestones(self, job_ids: list[str]) -> tuple[list[bytes], int]:
        """Return what is kept for the jobs, and a sequence up to which all of it was appended."""
        async with self._ask_lock:
            if self._asking is None:
                self._asking = AsyncClient(self._settings.url, self._settings.timeout)
            *answers, newest = await self._asking.call(
                *(("LRANGE", self._settings.keys.job(job_id), 0, -1) for job_id in job_ids),
                ("XREVRANGE", self._settings.keys.events, "+", "-", "COUNT", 1),
            )
        found = [payload for items in answers for payload in job_payloads(items)]
        return found, sequence_of(newest[0][0]) if newest else 0

    def _commands(self, cursor: Cursor, block: float) -> list[Command]:
        settings = self._settings
        return read(settings.keys, settings.node, cursor, _READ, round(block * 1000))
