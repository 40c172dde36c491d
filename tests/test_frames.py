import json
from collections.abc import Sequence
from typing import Any

from jobqueue_broadcast.commands import Connected
from jobqueue_broadcast.events import JobFailed
from jobqueue_broadcast.frames import Connection, Frame, TextWire, Wire, reply_frame
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.testing import RecordingConnection


class CountingWire:
    """Packs a payload with its own name, and counts how often."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.packs = 0

    def pack(self, payload: bytes) -> str:
        self.packs += 1
        return f"{self.name}:{payload.decode()}"

    def join(self, packed: Sequence[Any]) -> list[Any]:
        return list(packed)


def test_a_frame_is_packed_once_per_wire() -> None:
    wires = [CountingWire("a"), CountingWire("b"), CountingWire("c")]
    frame = Frame(b"{}")
    for _ in range(3):
        assert [frame.packed(wire) for wire in wires] == ["a:{}", "b:{}", "c:{}"]
    assert [wire.packs for wire in wires] == [1, 1, 1]


def test_a_frame_of_a_falsy_packing_is_still_packed_once() -> None:
    class Nothing(CountingWire):
        def pack(self, payload: bytes) -> str:
            super().pack(payload)
            return ""

    wires = [Nothing("a"), Nothing("b")]
    frame = Frame(b"{}")
    for _ in range(2):
        assert [frame.packed(wire) for wire in wires] == ["", ""]
    assert [wire.packs for wire in wires] == [1, 1]


def test_a_frame_knows_its_event() -> None:
    event = JobFailed(job_id="job-1", error="e")
    assert Frame(b"{}", event).event is event
    assert Frame(b"{}").event is None


def test_the_text_wire_leaves_payloads_as_they_are() -> None:
    wire: Wire = TextWire()
    assert wire.pack(b"{}") == b"{}"
    assert wire.join([b"1", b"2"]) == (b"1", b"2")


def test_a_reply_has_a_position_only_where_the_connection_opted_in() -> None:
    reply = Connected(timestamp=5)
    assert reply_frame(reply).payload == b'{"type":"connected","timestamp":5}'
    assert reply_frame(reply).event is None
    assert json.loads(reply_frame(reply, Position("e", 3)).payload) == {
        "type": "connected",
        "timestamp": 5,
        "position": "e:3",
    }


def test_a_recording_connection_is_a_connection() -> None:
    connection: Connection = RecordingConnection()
    assert connection.wire is connection.wire
