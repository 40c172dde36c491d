"""What the end-to-end tests are made of: a small host, and peers that speak plain WebSocket."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec import structs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from jobqueue_broadcast import (
    EventBroadcaster,
    HookRefusal,
    JobAssigned,
    JobCompleted,
    JobData,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    JobSubmitted,
    Principal,
    SubmitJob,
)

Frame = dict[str, Any]

PATIENCE = 20.0
"""Seconds after which a frame that has not come will not come."""


class Host:
    """A job queue in which everything happens when the test says so."""

    def __init__(self, broadcaster: EventBroadcaster) -> None:
        self.broadcaster = broadcaster
        self.broadcast = broadcaster.broadcast
        self.numbers = itertools.count(1)
        self.submitted: dict[str, tuple[SubmitJob, Principal]] = {}
        self.cancelled: list[tuple[str, Principal]] = []

    async def submit(self, command: SubmitJob, principal: Principal) -> str:
        job_id = f"job-{next(self.numbers)}"
        self.submitted[job_id] = (command, principal)
        described = structs.asdict(command)
        del described["message_id"]
        data = JobData(id=job_id, created_at=self.broadcaster.clock.now_ms(), **described)
        self.broadcast(JobSubmitted(job_id=job_id, job_data=data))
        return job_id

    async def cancel(self, job_id: str, principal: Principal) -> None:
        if job_id not in self.submitted:
            raise HookRefusal("no such job", "not_found")
        self.cancelled.append((job_id, principal))
        self.broadcast(
            JobStatusChanged(job_id=job_id, old_status="in_progress", new_status="cancelled")
        )

    def assign(self, job_id: str, worker_id: str) -> None:
        self.broadcast(JobAssigned(job_id=job_id, worker_id=worker_id))

    def start(self, job_id: str, worker_id: str) -> None:
        self.broadcast(
            JobStatusChanged(
                job_id=job_id, old_status="assigned", new_status="in_progress", worker_id=worker_id
            )
        )

    def progress(self, job_id: str, worker_id: str, progress: float) -> None:
        self.broadcast(JobProgress(job_id=job_id, worker_id=worker_id, progress=progress))

    def complete(self, job_id: str, worker_id: str, result: object) -> None:
        self.broadcast(JobCompleted(job_id=job_id, worker_id=worker_id, result=result))

    def fail(self, job_id: str, worker_id: str, error: str) -> None:
        self.broadcast(JobFailed(job_id=job_id, worker_id=worker_id, error=error))


class Peer:
    """A connected monitor or client.

    Attributes:
        frames: Everything received so far, in order.
    """

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.frames: list[Frame] = []

    async def send(self, type_: str, **fields: object) -> None:
        await self.websocket.send(json.dumps({"type": type_, **fields}))

    async def next(self) -> Frame:
        """Return the next frame."""
        async with asyncio.timeout(PATIENCE):
            text = await self.websocket.recv()
        assert isinstance(text, str), "expected text frames alone"
        frame: Frame = json.loads(text)
        assert isinstance(frame["timestamp"], int)
        assert isinstance(frame["type"], str)
        absent = {name for name, value in frame.items() if value is None}
        assert absent <= {"result"}, "optional fields are left out; only a result may be null"
        self.frames.append(frame)
        return frame

    async def until(self, **expected: object) -> Frame:
        """Return the next frame with these fields, and keep those before it in `frames`."""
        while True:
            frame = await self.next()
            if all(frame.get(name) == value for name, value in expected.items()):
                return frame

    async def closed(self) -> int | None:
        """Read to the end of the connection, and return its close code."""
        try:
            while True:
                await self.next()
        except ConnectionClosed:
            return self.websocket.close_code

    def types(self) -> list[str]:
        return [frame["type"] for frame in self.frames]

    def timeless(self) -> list[Frame]:
        """Return the frames without the times that differ from run to run."""
        return [without_times(frame) for frame in self.frames]


def without_times(frame: Frame) -> Frame:
    """Return a frame without its times, which must be whole milliseconds of our century."""
    rest = dict(frame)
    for name in ("timestamp", "assigned_at", "completed_at", "failed_at", "created_at"):
        if name in rest:
            assert 1_000_000_000_000 < rest.pop(name) < 10_000_000_000_000
    if "job_data" in rest:
        rest["job_data"] = without_times(rest["job_data"])
    return rest


@asynccontextmanager
async def peer(
    port: int, path: str, *, token: str | None = None, origin: str | None = None
) -> AsyncIterator[Peer]:
    """Connect to a server; the greeting is left to be read."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if origin:
        headers["Origin"] = origin
    async with connect(
        f"ws://localhost:{port}{path}", additional_headers=headers, proxy=None
    ) as websocket:
        yield Peer(websocket)
