"""What the adapter relies on although `websockets`, or asyncio, does not document it.

`DirectConnection` and `BroadcastConnection` are the only places that do. When a release changes
one of these, this file says which, and `serve(direct=False)` still works: the same tests hold it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, PayloadTooBig, ProtocolError
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import Frame, Opcode
from websockets.protocol import Event, State

from jobqueue_broadcast.adapters.websockets.connections import (
    READ_SIZE,
    BroadcastConnection,
    supports_direct,
    wire_of,
)
from jobqueue_broadcast.adapters.websockets.inflating import GuardedDeflate
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
async def test_little_is_read_at_once() -> None:
    sizes: list[int] = []

    class Noting(BroadcastConnection):
        def data_received(self, data: bytes) -> None:
            sizes.append(len(data))
            super().data_received(data)

    async def handle(websocket: ServerConnection) -> None:
        assert len(await websocket.recv()) == 1_000_000

    async with serve(handle, "127.0.0.1", 0, compression=None, create_connection=Noting) as server:
        port = server.sockets[0].getsockname()[1]
        with await Raw.connect(port, request("/")) as peer:
            assert await peer.status() == 101
            await peer.send(frame(bytes(1_000_000)))
            assert await peer.close_code() == 1000
    assert max(sizes) <= READ_SIZE


def packed(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-12)
    data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return data.removesuffix(b"\x00\x00\xff\xff")


def in_any_loop(name: str, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    factory = pytest.importorskip("uvloop").new_event_loop if name == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("aborted", [False, True])
def test_what_was_read_is_held_back_while_messages_wait(
    loop: str, compressed: bool, aborted: bool
) -> None:
    most = 0
    got: list[str | bytes] = []
    failed: list[dict[str, Any]] = []

    class Noting(BroadcastConnection):
        def data_received(self, data: bytes) -> None:
            nonlocal most
            super().data_received(data)
            most = max(most, len(self.recv_messages.frames))

    async def scenario() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda _, each: failed.append(each))

        async def handle(websocket: ServerConnection) -> None:
            assert bool(websocket.protocol.extensions) is compressed
            await until(lambda: not websocket.transport.is_reading())
            if aborted:
                websocket.transport.abort()
                await websocket.wait_closed()
            with contextlib.suppress(ConnectionClosed):
                while True:
                    got.append(await websocket.recv())
            ended.set()

        arguments: dict[str, Any] = {"extensions": [_deflate_factory()]} if compressed else {}
        offers = ["Sec-WebSocket-Extensions: permessage-deflate"] if compressed else []
        async with serve(
            handle, "127.0.0.1", 0, compression=None, create_connection=Noting, **arguments
        ) as server:
            port = server.sockets[0].getsockname()[1]
            with await Raw.connect(port, request("/", *offers)) as peer:
                assert await peer.status() == 101
                # In fragments: while there is only a part of one, what is held must go on.
                await peer.send(
                    b"".join(
                        frame(packed(text), rsv=0x40, final=False) + frame(b"", opcode=0)
                        if compressed
                        else frame(text, final=False) + frame(b"", opcode=0)
                        for text in (b"%d" % number for number in range(5_000))
                    )
                    + frame(b"\x03\xe8", opcode=8)
                )
                assert await peer.close_code() == (None if aborted else 1000)
            await ended.wait()

    in_any_loop(loop, scenario)
    assert not failed
    assert got == [str(number) for number in range(len(got))]
    # Of a connection that is lost those are taken that waited, two frames each, and nothing else.
    assert len(got) == (most // 2 if aborted else 5_000)
    # `max_queue`, and the frames of one piece of what was read: not those of all of it.
    assert 17 <= most <= 17 + READ_SIZE // 6


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


def decoded(
    extension: PerMessageDeflate, parts: list[bytes], max_size: int
) -> bytes | type[Exception]:
    """What `websockets` makes of a message, as it calls an extension."""
    got = b""
    for number, part in enumerate(parts):
        final = number == len(parts) - 1
        opcode = Opcode.CONT if number else Opcode.TEXT
        each = Frame(opcode, part, fin=final, rsv1=not number)
        try:
            got += extension.decode(each, max_size=max_size - len(got)).data
        except (PayloadTooBig, ProtocolError) as error:
            return type(error)
    return got


@given(
    st.binary(max_size=200),
    st.integers(1, 300),
    st.lists(st.integers(0, 200), max_size=3),
    st.data(),
)
def test_a_guarded_extension_inflates_what_any_does(
    unit: bytes, times: int, cuts: list[int], data: st.DataObject
) -> None:
    text = unit * times
    stream = packed(text)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parts = [stream[begin:end] for begin, end in itertools.pairwise(edges)]
    max_size = data.draw(st.integers(1, 2 * len(text) + 1) | st.just(max(1, len(text))))
    guarded = GuardedDeflate(True, True, 12, 12)
    # Two messages in a row: none leaves anything to the next.
    for _ in range(2):
        found = decoded(guarded, parts, max_size)
        assert found == (text if len(text) <= max_size else PayloadTooBig)
        if found is PayloadTooBig:
            return


@given(st.binary(min_size=1, max_size=300))
def test_a_guarded_extension_refuses_what_any_does(junk: bytes) -> None:
    plain = decoded(PerMessageDeflate(True, True, 12, 12), [junk], 5_000)
    assert decoded(GuardedDeflate(True, True, 12, 12), [junk], 5_000) == plain


def ended(text: bytes) -> bytes:
    """A deflate stream with a last block, as RFC 7692 (7.2.3.4) would have it."""
    compressor = zlib.compressobj(wbits=-12)
    return compressor.compress(text) + compressor.flush(zlib.Z_FINISH) + b"\x00"


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 16 * 1024, 50_000])
def test_a_stream_with_an_end_is_inflated_and_what_follows_is_not_kept(size: int) -> None:
    text = bytes(size)
    assert decoded(GuardedDeflate(True, True, 12, 12), [ended(text)], 64_000) == text
    assert decoded(GuardedDeflate(True, True, 12, 12), [ended(text), b"\x00"], 64_000) == text
    for more in (b"x" * 100, b"x" * 5_000):
        parts = [ended(text) + more]
        assert decoded(GuardedDeflate(True, True, 12, 12), parts, 64_000) is ProtocolError
        parts = [ended(text), more]
        assert decoded(GuardedDeflate(True, True, 12, 12), parts, 64_000) is ProtocolError
