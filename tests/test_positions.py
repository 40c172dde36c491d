import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.positions import Position, with_position

positions = st.builds(
    Position,
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    st.integers(0, 10**40 - 1),
    st.integers(0, 10**18 - 1),
)


@given(positions)
def test_a_position_survives_the_peer(position: Position) -> None:
    assert Position.parse(str(position)) == position


def test_a_position_reads_as_the_protocol_says() -> None:
    assert str(Position("epoch", 7)) == "epoch:7"
    assert str(Position("epoch", 7, 2)) == "epoch:7.2"
    assert Position.parse("epoch:7") == Position("epoch", 7, 0)


@given(positions, positions)
def test_positions_of_one_epoch_are_ordered_by_sequence_and_state(a: Position, b: Position) -> None:
    b = Position(a.epoch, b.sequence, b.state)
    assert (a < b) == ((a.sequence, a.state) < (b.sequence, b.state))


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "epoch",
        "epoch:",
        ":1",
        "epoch:-1",
        "epoch:1 ",
        "epoch:1\n",
        "epoch:1.",
        "epoch:1.2.3",
        "epoch:٣",  # a digit, but not of ASCII
        "ep och:1",
        "e:" + "9" * 41,
        "e" * 65 + ":1",
        "e:1." + "9" * 19,
    ],
)
def test_what_was_never_given_out_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Position.parse(text)
    assert str(caught.value) == "position: expected <epoch>:<sequence>"


@given(st.text())
def test_any_text_is_a_position_or_refused(text: str) -> None:
    try:
        position = Position.parse(text)
    except InvalidArgument:
        return
    assert re.fullmatch(r"[\w-]+:\d+(\.\d+)?", str(position))


@given(positions)
def test_the_position_is_the_last_field_of_a_frame(position: Position) -> None:
    frame = json.loads(with_position(b'{"type":"connected","timestamp":1}', position))
    assert list(frame.items()) == [
        ("type", "connected"),
        ("timestamp", 1),
        ("position", str(position)),
    ]
