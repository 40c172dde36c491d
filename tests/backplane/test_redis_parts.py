"""The parts that do no I/O: ids and sequences, repeats, and the queue of what goes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.backplane.redis.entries import (
    BadEntry,
    Keys,
    append,
    before,
    job_payloads,
    parse_entry,
    sequence_of,
)
from jobqueue_broadcast.backplane.redis.outgoing import Outgoing
from jobqueue_broadcast.backplane.redis.repeats import Repeats
from jobqueue_broadcast.backplane.redis.rounds import Cursor, why_broken
from jobqueue_broadcast.errors import BackplaneFull
from jobqueue_broadcast.positions import Position

number = st.integers(0, 2**64 - 1)
ids = st.builds(lambda a, b: b"%d-%d" % (a, b), number, number)


@given(ids, ids)
def test_sequences_are_in_the_order_of_ids(a: bytes, b: bytes) -> None:
    order = [tuple(map(int, entry_id.split(b"-"))) for entry_id in (a, b)]
    assert (sequence_of(a) < sequence_of(b)) == (order[0] < order[1])
    assert Position.parse(str(Position("e", sequence_of(a)))).sequence == sequence_of(a)


@given(ids)
def test_before_is_just_before(entry_id: bytes) -> None:
    assert sequence_of(before(entry_id)) == max(sequence_of(entry_id) - 1, 0)


@given(st.lists(st.integers(0, 60)))
def test_each_counter_is_new_once(counters: list[int]) -> None:
    repeats, seen = Repeats(), set[int]()
    for counter in counters:
        assert repeats.has(b"n", counter) == (counter in seen)
        assert repeats.take(b"n", counter) == (counter not in seen)
        seen.add(counter)


def test_repeats_are_bounded() -> None:
    repeats = Repeats(limit=3)
    for sender in range(10):
        assert repeats.take(b"%d" % sender, 1)
    assert len(repeats) == 3
    for counter in range(0, 1000, 2):
        assert repeats.take(b"n", counter)
    assert not repeats.take(b"n", 1)  # too old: taken for seen
    assert repeats.take(b"n", 997)
    assert repeats.take(None, 1)
    assert repeats.take(None, 1)


@given(st.lists(st.sampled_from(["put", "take", "failed", "back", "again", "all"])))
def test_nothing_that_was_put_is_ever_missing(steps: list[str]) -> None:
    """Whatever happens, a server that drops repeats gets everything, in order."""
    out = Outgoing(limit=1000, byte_limit=10**6, keep=0.0, keep_limit=1000)
    put, there, sequence = 0, list[int](), 0

    def take_and_send() -> None:
        nonlocal sequence
        items = out.take(3, 1000)
        there.extend(item.counter for item in items)
        out.sent([sequence + at for at, _ in enumerate(items)])
        sequence += len(items)

    for step in steps:
        match step:
            case "put":
                out.put(b"x")
                put += 1
            case "take":
                take_and_send()
            case "failed":
                out.take(3, 1000)
                out.failed()
            case "back":
                for counter in set(there):
                    out.came_back(counter, 1.0)
            case _:
                out.again(all_kept=step == "all")
    while len(out):
        take_and_send()
    firsts = list(dict.fromkeys(there))
    assert firsts == list(range(1, put + 1))
    assert out.size == 0


def test_outgoing_is_bounded() -> None:
    out = Outgoing(limit=2, byte_limit=10, keep=1.0, keep_limit=2)
    out.put(b"1234567")
    with pytest.raises(BackplaneFull):
        out.put(b"12345")
    out.put(b"123")
    with pytest.raises(BackplaneFull):
        out.put(b"")
    for at in range(10):
        out.sent([at * 2 + n for n, _ in enumerate(out.take(10, 100))])
        out.put(b"1")
    assert out.not_back <= 2


def test_what_was_passed_without_coming_back_is_missing() -> None:
    out = Outgoing(limit=9, byte_limit=99, keep=1.0, keep_limit=9)
    out.put(b"a")
    out.take(1, 9)
    out.sent([50])
    assert not out.missing(49)
    assert out.missing(50)
    out.came_back(1, now=0.0)
    assert not out.missing(50)


@pytest.mark.parametrize(
    ("payload", "kept"),
    [
        (b'{"type":"complete_job","job_id":"j"}', True),
        (b'{"type":"$job_accepted","job_id":"j"}', True),
        (b'{"type":"update_job_progress","job_id":"j"}', False),
        (b'{"type":"worker_connected"}', False),
        (b"nonsense", False),
    ],
)
def test_milestones_are_kept_for_their_job(payload: bytes, kept: bool) -> None:
    commands = append(Keys("p"), "n", 7, payload, retained=5, job_ttl=9)
    assert commands[0][:5] == ("XADD", "p:events", "MAXLEN", "~", 5)
    assert [command[0] for command in commands[1:]] == (["RPUSH", "LTRIM", "EXPIRE"] * kept)
    if kept:
        item = commands[1][2]
        assert isinstance(item, bytes)
        assert job_payloads([item, item]) == [payload]


@pytest.mark.parametrize("flat", [[], [b"x", b"1"], [b"p"], [b"p", b"{}", b"c", b"x"]])
def test_what_is_not_ours_is_no_entry(flat: list[bytes]) -> None:
    with pytest.raises((BadEntry, ValueError)):
        parse_entry([b"1-1", flat])


@pytest.mark.parametrize(
    ("epoch", "first", "why"),
    [
        (None, [b"9-0", []], "flushed"),
        (b"e", None, "flushed"),
        (b"f", [b"9-0", []], "epoch"),
        (b"e", [b"9-0", []], "trimmed"),
        (b"e", [b"5-0", []], "flushed"),
    ],
)
def test_how_continuity_was_lost(epoch: bytes | None, first: object, why: str) -> None:
    cursor = Cursor(b"e", b"1-0")
    cursor.last = b"8-0"
    assert why_broken(cursor, epoch, first) == why
