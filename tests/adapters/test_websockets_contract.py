"""What the adapter relies on although `websockets` does not document it.

`DirectConnection` and `BroadcastConnection` are the only places that do. When a release changes
one of these, this file says which, and `serve(direct=False)` still works: the same tests hold it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from jobqueue_broadcast.adapters.websockets.connections import (
    BroadcastConnection,
    supports_direct,
    wire_of,
)
from jobqueue_broadcast.adapters.websockets.server import _deflate_factory
from jobqueue_broadcast.adapters.websockets.wires import PLAIN, DeflateWire
from tests.adapters.raw import Raw, frame, in_loop, request, until

Check = Callable[[BroadcastConnection], Awaitable[None]]


async def on_a_connection(check: Check, **arguments: Any) -> None:
    """Run a check on the server's side of an open connection."""
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handle(websocket: ServerConnection) -> None:
        try:
            assert isinstance(websocket, BroadcastConnection)
            await check(websocket)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    client = arguments.pop("client", {})
    arguments = {"compression": None, **arguments}
    async with serve(
        handle, "127.0.0.1", 0, create_connection=BroadcastConnection, **arguments
    ) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/", compression=None, **client) as websocket:
            await outcome
            await websocket.close()


@in_loop
async def test_the_transport_is_one_and_takes_what_is_written() -> None:
    async def check(websocket: BroadcastConnection) -> None:
        assert isinstance(websocket.transport, asyncio.WriteTransport)
        assert supports_direct(websocket)
        assert websocket.transport.get_write_buffer_size() == 0
        assert callable(websocket.transport.abort)

    await on_a_connection(check)


@in_loop
async def test_what_is_written_to_the_transport_reaches_the_peer_between_others() -> None:
    ready = asyncio.Event()

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send("before")
        websocket.transport.write(PLAIN.join([PLAIN.pack(b"one"), PLAIN.pack(b"two")]))
        await websocket.send("after")
        ready.set()

    async with serve(handle, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/", compression=None) as websocket:
            got = [await websocket.recv() for _ in range(4)]
    assert got == ["before", "one", "two", "after"]
    assert ready.is_set()


@in_loop
async def test_the_state_tells_when_nothing_may_follow() -> None:
    async def check(websocket: BroadcastConnection) -> None:
        states = [websocket.protocol.state]
        closing = asyncio.create_task(websocket.close(1001))
        await asyncio.sleep(0)
        states.append(websocket.protocol.state)
        assert states == [State.OPEN, State.CLOSING]
        assert not supports_direct(websocket)
        await closing

    await on_a_connection(check)


@in_loop
async def test_a_full_transport_is_signalled_through_the_connection() -> None:
    calls: list[str] = []

    class Noting(BroadcastConnection):
        def pause_writing(self) -> None:
            super().pause_writing()
            calls.append("pause")

        def resume_writing(self) -> None:
            super().resume_writing()
            calls.append("resume")

    async def handle(websocket: ServerConnection) -> None:
        websocket.transport.write(PLAIN.pack(b"x" * 16_000_000))
        assert calls == ["pause"]
        await websocket.wait_closed()

    async with serve(handle, "127.0.0.1", 0, compression=None, create_connection=Noting) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/", compression=None, max_size=None) as peer:
            assert len(await peer.recv()) == 16_000_000
            await until(lambda: calls == ["pause", "resume"])


@pytest.mark.parametrize(
    "name",
    [
        "connection_made",
        "data_received",
        "connection_lost",
        "pause_writing",
        "resume_writing",
        "process_event",
        "send_data",
    ],
)
def test_a_connection_is_an_asyncio_protocol(name: str) -> None:
    assert issubclass(ServerConnection, asyncio.Protocol)
    ours = inspect.signature(getattr(BroadcastConnection, name))
    theirs = inspect.signature(getattr(ServerConnection, name))
    assert list(ours.parameters) == list(theirs.parameters)


@in_loop
async def test_the_request_is_there_as_soon_as_its_last_byte_was_received() -> None:
    seen: list[bool] = []

    class Noting(BroadcastConnection):
        def data_received(self, data: bytes) -> None:
            seen.append(self.request is None)
            super().data_received(data)
            seen.append(self.request is not None)

    async def handle(websocket: ServerConnection) -> None:
        await websocket.wait_closed()

    async with serve(handle, "127.0.0.1", 0, create_connection=Noting) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/"):
            pass
    assert seen[:2] == [True, True]


@in_loop
async def test_the_pongs_of_one_read_are_written_at_once_and_each_ping_is_seen() -> None:
    seen: list[Opcode] = []
    writes: list[int] = []

    class Noting(BroadcastConnection):
        def process_event(self, event: Event) -> None:
            if isinstance(event, Frame):
                seen.append(event.opcode)
            super().process_event(event)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            write = transport.write

            def noting(data: Any) -> None:
                writes.append(len(data))
                write(data)

            transport.write = noting  # type: ignore[method-assign]
            super().connection_made(transport)

    async def handle(websocket: ServerConnection) -> None:
        await websocket.wait_closed()

    async with serve(handle, "127.0.0.1", 0, compression=None, create_connection=Noting) as server:
        port = server.sockets[0].getsockname()[1]
        with await Raw.connect(port, request("/")) as peer:
            assert await peer.status() == 101
            writes.clear()
            await peer.send(frame(b"", opcode=9) * 100 + frame(b"\x03\xe8", opcode=8))
            assert (await peer.rest()).startswith(b"\x8a\x00" * 100 + b"\x88\x02\x03\xe8")
    assert seen[:100] == [Opcode.PING] * 100
    # One unless the bytes arrived in two reads.
    assert len(writes) <= 3


@in_loop
async def test_without_an_extension_the_wire_is_the_plain_one() -> None:
    async def check(websocket: BroadcastConnection) -> None:
        assert wire_of(websocket, {}) is PLAIN

    await on_a_connection(check)


@pytest.mark.parametrize("bits", [None, 9, 10, 12, 15])
def test_the_wire_is_the_one_agreed_on(bits: int | None) -> None:
    async def check(websocket: BroadcastConnection) -> None:
        (extension,) = websocket.protocol.extensions
        assert isinstance(extension, PerMessageDeflate)
        wires: dict[int, DeflateWire] = {}
        wire = wire_of(websocket, wires)
        assert isinstance(wire, DeflateWire)
        assert wires == {min(bits or 15, 12): wire}
        assert wire_of(websocket, wires) is wire

    offer = ClientPerMessageDeflateFactory(server_max_window_bits=bits)
    run = in_loop(on_a_connection)
    run(check, extensions=[_deflate_factory()], client={"extensions": [offer]})


def test_a_context_of_its_own_has_no_shared_wire() -> None:
    async def check(websocket: BroadcastConnection) -> None:
        assert websocket.protocol.extensions
        assert wire_of(websocket, {}) is None

    run = in_loop(on_a_connection)
    run(
        check,
        extensions=[ServerPerMessageDeflateFactory()],
        client={"extensions": [ClientPerMessageDeflateFactory()]},
    )
