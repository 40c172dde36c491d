import pytest

from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.frames import Connection, TextWire
from jobqueue_broadcast.testing import ManualClock, RecordingConnection


def test_the_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(1_000)
    assert (clock.now_ms(), clock.now_ms(), clock.monotonic()) == (1_000, 1_000, 0.0)
    clock.advance(1.5)
    assert (clock.now_ms(), clock.monotonic()) == (2_500, 1.5)
    clock.advance(0)
    assert clock.now_ms() == 2_500


def test_the_clock_never_goes_back() -> None:
    with pytest.raises(InvalidArgument, match="seconds: expected 0 or more, got -1"):
        ManualClock().advance(-1)


def test_the_clock_begins_at_a_plausible_time() -> None:
    assert ManualClock().now_ms() == 1_642_700_000_000


def test_a_connection_records_what_it_is_given() -> None:
    connection = RecordingConnection()
    as_seen_by_the_core: Connection = connection
    as_seen_by_the_core.write((b'{"a":1}', b'{"b":2}'))
    as_seen_by_the_core.write((b'{"c":3}',))
    assert connection.batches == 2
    assert connection.payloads == [b'{"a":1}', b'{"b":2}', b'{"c":3}']
    assert connection.frames == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert connection.backlog() == 0


def test_take_returns_each_frame_once() -> None:
    connection = RecordingConnection()
    connection.write((b'{"a":1}',))
    assert connection.take() == [{"a": 1}]
    connection.write((b'{"b":2}',))
    assert connection.take() == [{"b": 2}]
    assert connection.take() == []


def test_a_connection_records_how_it_ended() -> None:
    connection = RecordingConnection()
    assert (connection.closed, connection.aborted) == (None, False)
    connection.close(4408, "too slow")
    connection.abort()
    assert connection.closed == (4408, "too slow")
    assert connection.aborted


def test_connections_share_a_wire_unless_given_another() -> None:
    other = TextWire()
    assert RecordingConnection().wire is RecordingConnection().wire
    assert RecordingConnection(other).wire is other
