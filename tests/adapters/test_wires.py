"""Wires: framing at every length that changes the header, and frames compressed on their own."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from jobqueue_broadcast.adapters.websockets.wires import PLAIN, DeflateWire

LENGTHS = [0, 1, 125, 126, 127, 65535, 65536, 100_000]

texts = st.text(max_size=300).map(str.encode) | st.binary(max_size=300)


def frames_in(data: bytes, inflate: PerMessageDeflate | None = None) -> list[Frame]:
    """Read frames as a stock client does."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while True:
        parser = Frame.parse(reader.read_exact, mask=False, extensions=[inflate] if inflate else [])
        try:
            next(parser)
        except StopIteration as parsed:
            frames.append(parsed.value)
        except EOFError:
            return frames


def stock_client(bits: int, *, takeover: bool) -> PerMessageDeflate:
    """The receiving end of a client that agreed to a window, and may keep its context or not."""
    return PerMessageDeflate(not takeover, True, bits, 15)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_plain_frame_is_read_back(length: int) -> None:
    payload = b"x" * length
    (frame,) = frames_in(PLAIN.pack(payload))
    assert frame.opcode is Opcode.TEXT
    assert frame.fin
    assert bytes(frame.data) == payload


@pytest.mark.parametrize(("length", "header"), [(125, 2), (126, 4), (65535, 4), (65536, 10)])
def test_the_header_is_the_shortest_that_will_do(length: int, header: int) -> None:
    # RFC 6455, section 5.2: "the minimal number of bytes MUST be used".
    assert len(PLAIN.pack(b"x" * length)) == header + length


@pytest.mark.parametrize("takeover", [True, False])
@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("length", LENGTHS)
def test_a_compressed_frame_is_read_back(length: int, bits: int, takeover: bool) -> None:
    wire = DeflateWire(bits)
    payload = (b'{"type":"update_job_progress","progress":0.5}' * (length // 40 + 1))[:length]
    client = stock_client(bits, takeover=takeover)
    for _ in range(3):
        (frame,) = frames_in(wire.pack(payload), client)
        assert bytes(frame.data) == payload


@given(st.lists(texts, min_size=1, max_size=8), st.integers(9, 15), st.booleans())
def test_joined_frames_are_read_back_in_order(
    payloads: list[bytes], bits: int, takeover: bool
) -> None:
    for wire, client in ((PLAIN, None), (DeflateWire(bits), stock_client(bits, takeover=takeover))):
        joined = wire.join([wire.pack(payload) for payload in payloads])
        assert [bytes(frame.data) for frame in frames_in(joined, client)] == payloads


@given(st.lists(texts, min_size=2, max_size=8), st.integers(9, 15), st.data())
def test_compressed_frames_do_not_refer_to_each_other(
    payloads: list[bytes], bits: int, data: st.DataObject
) -> None:
    # What makes it right to compress once for connections that came at different times.
    wire = DeflateWire(bits)
    packed = [wire.pack(payload) for payload in payloads]
    start = data.draw(st.integers(0, len(payloads) - 1))
    newcomer = stock_client(bits, takeover=True)
    got = [bytes(frame.data) for each in packed[start:] for frame in frames_in(each, newcomer)]
    assert got == payloads[start:]
    inflated = zlib.decompressobj(-bits).decompress(_data_of(packed[start]) + b"\x00\x00\xff\xff")
    assert inflated == payloads[start]


def _data_of(packed: bytes) -> bytes:
    header = {126: 4, 127: 10}.get(packed[1], 2)
    return packed[header:]
