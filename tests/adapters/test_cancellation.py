"""Cancelled at any await, the adapter leaves nothing registered (R10)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from jobqueue_broadcast import EventBroadcaster, JobProgress, Principal, SubmitJob
from jobqueue_broadcast.adapters.websockets import WebSocketEndpoint
from tests.adapters.raw import Raw, frame, in_loop, request, until


class CancelledAt:
    """Awaits something, and cancels it at the n-th time it waits, from the inside."""

    def __init__(self, inner: Awaitable[Any], nth: int) -> None:
        self._inner = inner
        self._nth = nth
        self.cancelled = False

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._inner.__await__()
        try:
            waits_for = next(steps)
            for count in range(10_000):
                if count == self._nth:
                    self.cancelled = True
                    # It may go on to wait for something else, on its way out.
                    waits_for = steps.throw(asyncio.CancelledError())
                try:
                    sent = yield waits_for
                except BaseException as error:  # noqa: BLE001 - handed on
                    waits_for = steps.throw(error)
                else:
                    waits_for = steps.send(sent)
        except StopIteration as done:
            return done.value


async def conversation(port: int, target: str, commands: list[bytes]) -> None:
    """Connect, say everything, and leave without a word."""
    with await Raw.connect(port, request(target)) as peer:
        if await peer.status() == 101:
            for command in commands:
                await peer.send(frame(command))
            # Until everything was answered, or the server has had enough.
            await peer.send(frame(b"", opcode=9))
            while (found := await peer.frame()) is not None and found[0] != 0x8A:
                pass


CONVERSATIONS = {
    "monitor": ("/ws/monitor/m", [b'{"type":"heartbeat"}', b'{"type":"request_full_state"}']),
    "resuming": ("/ws/monitor/m?resume=nowhere:1", [b'{"type":"heartbeat"}']),
    "client": (
        "/ws/client/c?jobs=job-1,job-2",
        [b'{"type":"submit_job","job_type":"t"}', b'{"type":"cancel_job","job_id":"job-1"}'],
    ),
}


class Host:
    """A server whose handshakes or conversations are cancelled at their n-th wait."""

    def __init__(self, where: str, nth: int) -> None:
        async def slowly(result: Any) -> Any:
            await asyncio.sleep(0)
            return result

        def submit(_: SubmitJob, __: Principal) -> Awaitable[str]:
            return slowly("job-9")

        self.broadcaster = EventBroadcaster(client_retention=0.0)
        self.broadcaster.broadcast(JobProgress(job_id="job-1", worker_id="w", progress=0.5))
        self.endpoint = WebSocketEndpoint(
            self.broadcaster,
            authenticate=lambda _: slowly(Principal(id="p")),
            authorize=lambda *_: slowly(True),
            submit=submit,
            cancel=lambda *_: slowly(None),
            tick_interval=0.01,
        )
        self._where = where
        self._nth = nth
        self.cancelled = False

    async def _maybe_cancelled(self, where: str, inner: Awaitable[Any]) -> Any:
        if where != self._where:
            return await inner
        at = CancelledAt(inner, self._nth)
        try:
            return await at
        finally:
            self.cancelled = at.cancelled  # once it is over, and what was to be undone is undone

    async def process_request(self, websocket: ServerConnection, asked: Request) -> Response | None:
        inner = self.endpoint.process_request(websocket, asked)
        answer: Response | None = await self._maybe_cancelled("handshake", inner)
        return answer

    async def handle(self, websocket: ServerConnection) -> None:
        await self._maybe_cancelled("conversation", self.endpoint.handle(websocket))

    def serve(self) -> Server:
        return serve(
            self.handle,
            "127.0.0.1",
            0,
            process_request=self.process_request,
            create_connection=self.endpoint.connection_class,
            compression=None,
        )

    def left_behind(self) -> list[Any]:
        """What is still there."""
        stats, figures = self.endpoint.stats(), self.broadcaster.stats()
        return [
            each
            for each in (
                stats.connections,
                stats.principals,
                stats.addresses,
                stats.authenticating,
                stats.requests_pending,
                figures.monitors,
                figures.clients,
                figures.clients_away,
                figures.monitor_groups,
                figures.behind,
            )
            if each
        ]


@pytest.mark.parametrize("where", ["handshake", "conversation"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_nothing_is_left_registered(name: str, where: str) -> None:
    waits = 0

    @in_loop
    async def scenario(nth: int) -> None:
        nonlocal waits
        host = Host(where, nth)
        async with host.serve() as server, host.endpoint.running():
            port = server.sockets[0].getsockname()[1]
            talking = asyncio.create_task(conversation(port, *CONVERSATIONS[name]))
            await until(lambda: host.cancelled or talking.done())
            talking.cancel()
            await asyncio.wait([talking])
            await until(lambda: not host.left_behind())
            await host.endpoint.close(1.0)
        waits += host.cancelled

    for nth in range(100):
        scenario(nth)
        if waits <= nth:
            break
    print(f"{name}, {where}: cancelled at each of {waits} awaits, 0 left registered")
    assert waits >= 1
