"""X8: what peers send costs bounded memory, however it is compressed, cut up or piled up.

Figures are of a server in a process of its own (`memory_process.py`): the most that Python had
allocated while the peer sent, zlib's memory and what `websockets` keeps included.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.adapters.websockets import serve
from tests.adapters.raw import Raw, frame, in_loop, request, until

KiB = 1024
MiB = 1024 * 1024
SIZES = [64 * KiB, MiB]  # the first is the default
COMPRESSED = 0x40
OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
# `websockets` copies each frame it has read, and unmasks it into another copy. So the largest frame
# that it reads at all, 1000:1 or not compressed, costs twice its size and what was read beyond it.
GOAL = 2.0
READING = 3.0
_SYNC = b"\x00\x00\xff\xff"  # ends a part of a deflate stream; more can follow
_PROGRAM = Path(__file__).with_name("memory_process.py")


class Measured:
    """One run of `memory_process.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = self._read()

    def grown(self) -> int:
        """Return how much the memory grew, at most, since this was last asked."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def measured(max_size: int, kind: str = "ours") -> Iterator[Measured]:
    with subprocess.Popen(
        [sys.executable, str(_PROGRAM), str(max_size), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Measured(process)
        process.communicate(timeout=20)
    assert process.returncode == 0


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-12)
    packed = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return packed.removesuffix(_SYNC)


def inflated(data: bytes) -> bytes:
    return zlib.decompressobj(wbits=-12).decompress(data + _SYNC)


@functools.cache
def zeros(size: int) -> bytes:
    """So many bytes of a deflate stream, which inflates to 1,000 times as many zeros."""
    part = deflated(bytes(MiB)) + _SYNC
    return (part * (size // len(part) + 1))[:size]


def bomb(name: str, max_size: int) -> list[bytes]:
    match name:
        case "just too large":
            return [frame(deflated(bytes(max_size + 1)), rsv=COMPRESSED)]
        case "of 85 % of max_size":
            return [frame(zeros(max_size * 85 // 100), rsv=COMPRESSED)]
        case "of max_size":
            return [frame(zeros(max_size), rsv=COMPRESSED)]
        case "in two fragments":
            half = max_size // 2
            return [
                frame(zeros(max_size)[:half], rsv=COMPRESSED, final=False),
                frame(zeros(max_size)[half:], opcode=0, final=True),
            ]
        case _:
            part = deflated(bytes(300 * KiB)) + _SYNC
            return [frame(part, rsv=COMPRESSED, final=False)] + [
                frame(part, opcode=0, final=False)
            ] * 100


async def _settled(peer: Raw) -> None:
    """Wait until the server is done with the handshake, and has let go of what that took."""
    await peer.send(frame(b"", opcode=9))
    while (found := await peer.frame()) is not None and found[0] != 0x8A:
        pass


async def _ended_by(server: Measured, sent: list[bytes]) -> tuple[int | None, int]:
    """Send a bomb; return the close code and what it cost."""
    with await Raw.connect(server.port, request("/ws/client/c", OFFER)) as peer:
        assert "permessage-deflate" in await peer.head()
        await _settled(peer)
        server.grown()
        for piece in sent:
            await peer.send(piece)
        return await peer.close_code(), server.grown()


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("just too large", GOAL),
        ("of 85 % of max_size", GOAL),
        ("in two fragments", GOAL),
        ("in many parts", GOAL),
        ("of max_size", READING),
    ],
)
@pytest.mark.parametrize("max_size", SIZES)
def test_a_deflate_bomb_is_closed_with_1009_and_costs_no_memory(
    name: str, bound: float, max_size: int
) -> None:
    sent = bomb(name, max_size)
    figures: dict[str, tuple[int | None, int]] = {}
    for kind in ("ours", "websockets"):
        with measured(max_size, kind) as server:

            @in_loop
            async def scenario(kind: str = kind, server: Measured = server) -> None:
                figures[kind] = await _ended_by(server, sent)

            scenario()
    code, grown = figures["ours"]
    alone = figures["websockets"][1]
    print(f"X8: a bomb {name} ({max_size // KiB} KiB), {sum(map(len, sent))} bytes of 1000:1: "
          f"{code}, {grown / max_size:.2f} × max_size, at most {bound}; "
          f"websockets alone {alone / max_size:.2f}")  # fmt: skip
    assert code == 1009
    assert grown <= bound * max_size


@pytest.mark.parametrize("max_size", SIZES)
def test_compressed_messages_wait_to_be_inflated(max_size: int) -> None:
    # Each is as large as it may be, and a whole command; 256 KiB of them are 150 MiB and more.
    command = frame(deflated(b'{"type":"heartbeat"}'.ljust(max_size)), rsv=COMPRESSED)
    count = 256 * KiB // len(command)
    with measured(max_size) as server:

        @in_loop
        async def scenario() -> None:
            with await Raw.connect(server.port, request("/ws/monitor/m", OFFER)) as peer:
                assert "permessage-deflate" in await peer.head()
                await _settled(peer)
                server.grown()
                await peer.send(command * count)
                answered = 0
                while answered < count:
                    found = await peer.frame()
                    assert found is not None
                    if json.loads(inflated(found[1]))["type"] == "heartbeat_ack":
                        answered += 1

        scenario()
        grown = server.grown()
    print(f"X8: {count} commands of {max_size // KiB} KiB in {count * len(command) // KiB} KiB: "
          f"all answered, {grown / max_size:.1f} × max_size")  # fmt: skip
    # 17 wait (`max_queue` and one), with what the piece that was last inflated to, and the session
    # reads one.
    assert grown <= 24 * max_size


def test_nothing_is_kept_of_what_follows_the_end_of_a_deflate_stream() -> None:
    # It inflates to nothing, which is small enough in every fragment.
    end = zlib.compressobj(wbits=-12).flush(zlib.Z_FINISH)
    more = frame(bytes(SIZES[0]), opcode=0, final=False)
    with measured(SIZES[0]) as server:
        figures: list[tuple[int | None, int]] = []

        @in_loop
        async def scenario() -> None:
            sent = [frame(end, rsv=COMPRESSED, final=False)] + [more] * 100
            figures.append(await _ended_by(server, sent))

        scenario()
    code, grown = figures[0]
    print(f"X8: 6 MiB after the end of a stream: {code}, {grown / SIZES[0]:.2f} × max_size")
    assert code == 1002
    assert grown <= READING * SIZES[0]


@pytest.mark.parametrize("sent", [b"", b" "], ids=["empty", "small"])
def test_a_message_of_endless_fragments_is_cut(sent: bytes) -> None:
    with measured(SIZES[0]) as server:

        @in_loop
        async def scenario() -> None:
            with await Raw.connect(server.port, request("/ws/client/c")) as peer:
                assert await peer.status() == 101
                await _settled(peer)
                server.grown()
                await peer.send(
                    frame(sent, final=False) + frame(sent, opcode=0, final=False) * 50_000
                )
                await peer.rest()

        scenario()
        grown = server.grown()
    print(f"X8: 50,000 fragments of {len(sent)} bytes: cut, {grown / SIZES[0]:.1f} × max_size")
    assert grown <= 512 * KiB


@in_loop
async def test_a_message_of_a_thousand_fragments_is_not_cut() -> None:
    command = b'{"type":"heartbeat"}'.ljust(1000)
    parts = [
        frame(command[at : at + 1], opcode=0 if at else 1, final=at == 999) for at in range(1000)
    ]
    async with serve(EventBroadcaster(), "127.0.0.1", 0) as server:
        with await Raw.connect(server.port, request("/ws/monitor/m")) as peer:
            assert await peer.status() == 101
            await peer.frame()
            # Of each message anew: after the first the second is not cut either.
            await peer.send(b"".join(parts) * 2)
            for _ in range(2):
                found = await peer.frame()
                assert found is not None
                assert json.loads(found[1])["type"] == "heartbeat_ack"
        await until(lambda: server.endpoint.stats().connections == 0)
        assert server.endpoint.stats().flooded_total == 0
