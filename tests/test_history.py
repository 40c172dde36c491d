import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.events import JobProgress
from jobqueue_broadcast.history import History, Record, Trimmed
from jobqueue_broadcast.positions import Position


def record(sequence: int, size: int = 10, timestamp: int | None = None) -> Record:
    at = sequence if timestamp is None else timestamp
    event = JobProgress(job_id="a", worker_id="w", progress=0.1, timestamp=at)
    return Record(sequence, event, b"x" * size, None, True)


def filled(count: int, limit: int = 10_000) -> History:
    history = History("e", limit, 1_000_000)
    for sequence in range(1, count + 1):
        history.append(record(sequence))
    return history


def after(history: History, sequence: int, epoch: str = "e") -> list[int]:
    return [each.sequence for chunk in history.after(Position(epoch, sequence)) for each in chunk]


@given(
    st.integers(0, 8),
    st.integers(0, 120),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 50)), max_size=40),
)
def test_the_newest_are_retained_within_both_bounds(
    limit: int, byte_limit: int, head: int, steps: list[tuple[int, int]]
) -> None:
    history = History("e", limit, byte_limit, head)
    model: list[tuple[int, int]] = []
    floor, sequence = head, head
    for gap, size in steps:
        sequence += gap
        history.append(record(sequence, size))
        model.append((sequence, size))
        while len(model) > limit or sum(size for _, size in model) > byte_limit:
            floor = model.pop(0)[0]
        assert history.position == Position("e", sequence)
        assert (len(history), history.size) == (len(model), sum(size for _, size in model))
        for at in range(head, sequence + 2):
            assert history.covers(at) == (floor <= at <= sequence)
            if history.covers(at):
                assert after(history, at) == [each for each, _ in model if each > at]
            else:
                with pytest.raises(Trimmed):
                    after(history, at)
    assert history.trimmed == len(steps) - len(model)


def test_what_arrives_while_a_reader_takes_its_time_is_included() -> None:
    history = filled(300)
    chunks = history.after(Position("e", 0))
    assert [each.sequence for each in next(chunks)] == list(range(1, 257))
    history.append(record(301))
    assert [each.sequence for each in next(chunks)] == list(range(257, 302))
    history.append(record(302))
    assert [each.sequence for each in next(chunks)] == [302]
    assert list(chunks) == []


def test_a_reader_that_was_overtaken_is_told() -> None:
    history = filled(300, limit=300)
    chunks = history.after(Position("e", 0))
    next(chunks)
    for sequence in range(301, 700):
        history.append(record(sequence))
    with pytest.raises(Trimmed):
        next(chunks)


def test_another_epoch_is_not_continued_even_where_its_sequences_fit() -> None:
    history = filled(10)
    chunks = history.after(Position("e", 5))
    history.begin("f", 0)
    assert (len(history), history.size, history.trimmed) == (0, 0, 10)
    for sequence in range(1, 9):
        history.append(record(sequence))
    with pytest.raises(Trimmed):
        next(chunks)
    with pytest.raises(Trimmed):
        after(history, 5)
    assert after(history, 5, "f") == [6, 7, 8]


@given(
    st.lists(st.integers(0, 6), max_size=25),
    st.integers(0, 7),
    st.integers(1, 30),
    st.integers(0, 5),
)
def test_pages_by_time_make_headway_and_miss_nothing(
    timestamps: list[int], since: int, most: int, unwanted: int
) -> None:
    history = History("e", 100, 10_000)
    for sequence, timestamp in enumerate(timestamps, 1):
        history.append(record(sequence, timestamp=timestamp))
    wanted = sorted(t for t in timestamps if t >= since and t != unwanted)
    got: list[int] = []
    while True:
        page = history.page(since, most, lambda each: each.event.timestamp != unwanted)
        times = [each.event.timestamp for each in page.records]
        assert times == sorted(times)
        got += times if not got else [t for t in times if t > since]
        if not page.has_more:
            break
        assert times[-1] > since, "no headway"
        assert len(set(times)) == 1 or len([t for t in times if t < times[-1]]) < max(
            most, times.count(since) + 1
        )
        since = times[-1]
    assert got == wanted
    assert history.oldest_timestamp() == min(timestamps, default=None)


def test_a_page_never_splits_a_millisecond() -> None:
    history = History("e", 100, 10_000)
    for sequence, timestamp in enumerate([1, 2, 2, 2, 3], 1):
        history.append(record(sequence, timestamp=timestamp))
    page = history.page(1, 1, lambda _: True)
    assert ([each.sequence for each in page.records], page.has_more) == ([1, 2, 3, 4], True)
