"""What any adapter must do: checks over real sockets, for ours and for anyone's.

An adapter is presented as a function that serves a broadcaster and yields its base URL::

    @asynccontextmanager
    async def start(broadcaster: EventBroadcaster, hooks: Hooks) -> AsyncGenerator[str]:
        async with my_adapter(broadcaster, submit=hooks.submit, ...) as server:
            yield f"ws://localhost:{server.port}"

    asyncio.run(check_adapter(start))

Needs asyncio for the peers' side, and no test framework: a check that fails raises
`AssertionError`, and `check_adapter` says which ones did.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.commands import SubmitJob
from jobqueue_broadcast.events import JobCompleted, JobData, JobProgress, JobSubmitted
from jobqueue_broadcast.session import Hooks

__all__ = ["ADAPTER_CHECKS", "Start", "check_adapter"]

Start: TypeAlias = Callable[[EventBroadcaster, Hooks], AbstractAsyncContextManager[str]]
"""Serves a broadcaster with these hooks until the block ends, and yields `ws://host:port`."""

Check: TypeAlias = Callable[[Start], Awaitable[None]]

_PATIENCE = 30.0
_object_decoder = msgspec.json.Decoder(dict[str, Any])


async def check_adapter(start: Start) -> None:
    """Run every check against an adapter.

    Raises:
        ExceptionGroup: Of the checks that failed, each with a note that names it.
    """
    failures: list[Exception] = []
    for check in ADAPTER_CHECKS:
        try:
            async with asyncio.timeout(2 * _PATIENCE):
                await check(start)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next check is run as well
            error.add_note(f"in {check.__name__}")
            failures.append(error)
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(ADAPTER_CHECKS)} checks failed", failures)


class _Peer:
    """A peer that reads decoded frames."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(_PATIENCE):
            return _object_decoder.decode(await self.websocket.recv())

    async def types(self, count: int) -> list[str]:
        return [(await self.next())["type"] for _ in range(count)]

    async def send(self, **frame: Any) -> None:
        await self.websocket.send(msgspec.json.encode(frame).decode())

    async def close_code(self) -> int:
        """Read to the end; return the code the server closed with."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    await self.websocket.recv()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006


def _expect(expected: object, got: object) -> None:
    """Not `assert`, which `python -O` leaves out."""
    if got != expected:
        raise AssertionError(f"expected {expected!r}, got {got!r}")


@asynccontextmanager
async def _peer(url: str, **arguments: Any) -> AsyncGenerator[_Peer]:
    async with connect(url, **arguments) as websocket:
        yield _Peer(websocket)


async def _refusal(url: str) -> int | None:
    """Return the status a handshake is refused with; `None`: it is let in."""
    try:
        async with connect(url):
            return None
    except InvalidStatus as refused:
        return refused.response.status_code


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_PATIENCE):
        while not condition():  # noqa: ASYNC110 - an adapter has nothing to set an event with
            await asyncio.sleep(0.005)


def _submitted(job_id: str) -> JobSubmitted:
    data = JobData(id=job_id, job_type="check", created_at=1)
    return JobSubmitted(job_id=job_id, job_data=data)


def _progress(job_id: str, progress: float) -> JobProgress:
    return JobProgress(job_id=job_id, worker_id="w", progress=progress)


async def greets_each_kind_in_its_format(start: Start) -> None:
    """A monitor is greeted `connected`, a client `connection_established`."""
    async with (
        start(EventBroadcaster(), Hooks()) as url,
        _peer(f"{url}/ws/monitor/m") as monitor,
        _peer(f"{url}/ws/client/c") as client,
    ):
        _expect({"type", "timestamp"}, set(await monitor.next()))
        _expect({"type", "message", "timestamp"}, set(await client.next()))


async def refuses_before_the_upgrade(start: Start) -> None:
    """Other paths are 404; bad ids, topics and positions are 400."""
    async with start(EventBroadcaster(), Hooks()) as url:
        for target, status in (
            ("/elsewhere", 404),
            ("/ws/monitor/", 400),
            ("/ws/client/a%20b", 400),
            ("/ws/monitor/m?topics=none", 400),
            ("/ws/client/c?resume=yesterday", 400),
        ):
            _expect((target, status), (target, await _refusal(url + target)))


async def routes_and_formats(start: Start) -> None:
    """The monitor sees all in the original format, each client only its job in EmProps format."""
    broadcaster = EventBroadcaster()
    async with (
        start(broadcaster, Hooks()) as url,
        _peer(f"{url}/ws/monitor/m") as monitor,
        _peer(f"{url}/ws/client/a?jobs=job-a") as a,
        _peer(f"{url}/ws/client/b?jobs=job-b") as b,
    ):
        for peer in (a, b):
            _expect(["connection_established", "subscribed"], await peer.types(2))
        await monitor.next()
        for job_id in ("job-a", "job-b"):
            broadcaster.broadcast(_submitted(job_id))
            broadcaster.broadcast(_progress(job_id, 0.5))
            broadcaster.broadcast(JobCompleted(job_id=job_id, worker_id="w", result=1))
        seen = [await monitor.next() for _ in range(6)]
        _expect(
            [
                "job_submitted",
                "update_job_progress",
                "complete_job",
            ]
            * 2,
            [frame["type"] for frame in seen],
        )
        for peer, job_id in ((a, "job-a"), (b, "job-b")):
            frames = [await peer.next() for _ in range(3)]
            _expect(
                [
                    "job_accepted",
                    "update_job_progress",
                    "complete_job",
                ],
                [frame["type"] for frame in frames],
            )
            _expect({job_id}, {frame["job_id"] for frame in frames})
            _expect({"status": "success", "data": 1}, frames[2]["result"])


async def submits_and_subscribes(start: Start) -> None:
    """An async submit hook runs, and its client is subscribed; acceptance comes once."""
    broadcaster = EventBroadcaster()

    async def submit(command: SubmitJob, principal: Principal) -> str:
        await asyncio.sleep(0)
        broadcaster.broadcast(_submitted("job-1"))
        return "job-1"

    async with (
        start(broadcaster, Hooks(submit=submit)) as url,
        _peer(f"{url}/ws/client/c") as client,
    ):
        await client.next()
        await client.send(type="submit_job", job_type="check", message_id="1")
        _expect("job_accepted", (await client.next())["type"])
        broadcaster.broadcast(JobCompleted(job_id="job-1", worker_id="w"))
        _expect("complete_job", (await client.next())["type"])


async def keeps_replies_in_order_with_events(start: Start) -> None:
    """A subscriber gets the reply, then the state, then live events, whatever the turn brings."""
    broadcaster = EventBroadcaster()
    async with start(broadcaster, Hooks()) as url, _peer(f"{url}/ws/client/c") as client:
        await client.next()
        broadcaster.broadcast(_submitted("job-1"))
        broadcaster.broadcast(_progress("job-1", 0.1))
        await client.send(type="subscribe_progress", job_id="job-1", message_id="1")
        await _until(lambda: broadcaster.stats().subscriptions == 1)
        broadcaster.broadcast(_progress("job-1", 0.2))
        frames = [await client.next() for _ in range(4)]
        _expect(
            [
                "subscribed",
                "job_accepted",
                "update_job_progress",
                "update_job_progress",
            ],
            [frame["type"] for frame in frames],
        )
        _expect([0.1, 0.2], [frame["progress"] for frame in frames[2:]])


async def answers_errors_and_stays_open(start: Start) -> None:
    """What is not understood is answered; binary and oversized frames close the connection."""
    async with start(EventBroadcaster(), Hooks()) as url:
        async with _peer(f"{url}/ws/client/c") as client:
            await client.next()
            await client.websocket.send("{")
            await client.send(type="dance", message_id="1")
            await client.send(type="cancel_job", job_id="job-1")
            codes = [(await client.next())["code"] for _ in range(3)]
            _expect(["bad_json", "unknown_type", "unsupported"], codes)
            await client.websocket.send(b"\x00")
            _expect(1003, await client.close_code())
        async with _peer(f"{url}/ws/client/c") as client:
            await client.next()
            await client.websocket.send("x" * 1_000_000)
            _expect(1009, await client.close_code())


async def replaces_an_older_connection(start: Start) -> None:
    """The same id again closes the older connection with 4409; its late end harms nobody."""
    broadcaster = EventBroadcaster()
    async with start(broadcaster, Hooks()) as url, _peer(f"{url}/ws/monitor/m") as older:
        await older.next()
        async with _peer(f"{url}/ws/monitor/m") as newer:
            await newer.next()
            _expect(4409, await older.close_code())
            await older.websocket.wait_closed()
            broadcaster.broadcast(_progress("job-1", 0.5))
            _expect("update_job_progress", (await newer.next())["type"])


async def resumes_without_gap_or_duplicate(start: Start) -> None:
    """What was broadcast between two connections comes when the second resumes."""
    broadcaster = EventBroadcaster()
    async with start(broadcaster, Hooks()) as url:
        async with _peer(f"{url}/ws/monitor/m?resume=new") as monitor:
            position = (await monitor.next())["position"]
        for step in range(1000):
            broadcaster.broadcast(_progress("job-1", step / 1000))
        async with _peer(f"{url}/ws/monitor/m?resume={position}") as monitor:
            await monitor.next()
            for step in range(1000, 1010):
                broadcaster.broadcast(_progress("job-1", step / 1010))
            progress = [(await monitor.next())["progress"] for _ in range(1010)]
            _expect([step / 1000 for step in range(1000)], progress[:1000])
        async with _peer(f"{url}/ws/monitor/m?resume=other:1") as monitor:
            _expect(
                [
                    "connected",
                    "resync_required",
                    "full_state_snapshot",
                ],
                await monitor.types(3),
            )


async def keeps_slow_readers_apart(start: Start) -> None:
    """A peer that does not read for a while gets every outcome in order; others do not wait."""
    broadcaster = EventBroadcaster(outbox_limit=64 * 1024 * 1024)
    async with (
        start(broadcaster, Hooks()) as url,
        _peer(f"{url}/ws/monitor/slow", max_queue=1) as slow,
        _peer(f"{url}/ws/monitor/fast") as fast,
    ):
        await fast.next()
        sent = 0
        while not broadcaster.stats().behind or sent < 100:
            # Random, so that compression does not let a slow reader keep up.
            result = {"number": sent, "filling": os.urandom(25_000).hex()}
            broadcaster.broadcast(JobCompleted(job_id=f"job-{sent}", worker_id="w", result=result))
            _expect(sent, (await fast.next())["result"]["number"])
            sent += 1
        await slow.next()
        for number in range(sent):
            _expect(number, (await slow.next())["result"]["number"])
        await _until(lambda: broadcaster.stats().behind == 0)


async def unregisters_whoever_leaves(start: Start) -> None:
    """After a clean or an abrupt end nothing of a connection is left."""
    broadcaster = EventBroadcaster()
    async with start(broadcaster, Hooks()) as url:
        async with _peer(f"{url}/ws/monitor/m") as monitor, _peer(f"{url}/ws/client/c") as client:
            await monitor.next()
            await client.next()
            client.websocket.transport.abort()
        await _until(lambda: not broadcaster.subscribers())


async def says_goodbye_after_everything_broadcast(start: Start) -> None:
    """At the end peers have what was broadcast, and then 1001."""
    broadcaster = EventBroadcaster()
    serving = start(broadcaster, Hooks())
    url = await serving.__aenter__()
    async with _peer(f"{url}/ws/monitor/m") as monitor:
        await monitor.next()
        broadcaster.broadcast(_progress("job-1", 0.5))
        ending = asyncio.ensure_future(serving.__aexit__(None, None, None))
        _expect(0.5, (await monitor.next())["progress"])
        _expect(1001, await monitor.close_code())
        await ending


ADAPTER_CHECKS: tuple[Check, ...] = (
    greets_each_kind_in_its_format,
    refuses_before_the_upgrade,
    routes_and_formats,
    submits_and_subscribes,
    keeps_replies_in_order_with_events,
    answers_errors_and_stays_open,
    replaces_an_older_connection,
    resumes_without_gap_or_duplicate,
    keeps_slow_readers_apart,
    unregisters_whoever_leaves,
    says_goodbye_after_everything_broadcast,
)
"""Every check, in the order they are run."""
