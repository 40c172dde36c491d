from collections.abc import Callable, Iterator

from jobqueue_broadcast.catch_up import Reason, past, why_not
from jobqueue_broadcast.events import JobProgress
from jobqueue_broadcast.frames import Frame
from jobqueue_broadcast.history import History, Record
from jobqueue_broadcast.positions import Position


def append(history: History, *sequences: int) -> None:
    for sequence in sequences:
        event = JobProgress(job_id="a", worker_id="w", progress=0.1, timestamp=1)
        history.append(Record(sequence, event, b"x", None, True))


def history_of(count: int, limit: int = 100) -> History:
    history = History("e", limit, 1000)
    append(history, *range(1, count + 1))
    return history


def frame_of(record: Record) -> Frame | None:
    """Odd ones are not for this connection."""
    return None if record.sequence % 2 else Frame(str(record.sequence).encode())


def read(
    history: History,
    begin: Position,
    finish: Callable[[], list[Frame]] = list,
    reason: Reason | None = None,
) -> Iterator[list[str]]:
    source = past(
        history,
        begin,
        greeting=[Frame(b"hello")],
        frame_of=frame_of,
        restart=lambda why: [Frame(f"{why}@{history.position}".encode())],
        finish=finish,
        reason=reason,
    )
    return ([frame.payload.decode() for frame in frames] for frames in source)


def test_why_a_position_cannot_be_continued_from() -> None:
    history = history_of(10, limit=4)
    assert why_not(history, Position("f", 8)) == "epoch"
    assert why_not(history, Position("e", 11)) == "epoch"
    assert why_not(history, Position("e", 5)) == "trimmed"
    assert why_not(history, Position("e", 6)) is None
    assert why_not(history, Position("e", 10)) is None


def test_what_is_retained_after_the_position_comes_after_the_greeting() -> None:
    assert list(read(history_of(6), Position("e", 2))) == [["hello"], ["4", "6"]]


def test_where_it_is_not_retained_the_state_comes_first() -> None:
    reading = read(history_of(10, limit=4), Position("e", 2))
    assert list(reading) == [["hello"], ["trimmed@e:10"]]


def test_a_reason_given_holds_whatever_is_retained() -> None:
    reading = read(history_of(6), Position("e", 2), reason="trimmed")
    assert list(reading) == [["hello"], ["trimmed@e:6"]]


def test_what_arrives_in_between_follows() -> None:
    history = history_of(2)
    reading = read(history, Position("e", 0))
    assert [next(reading), next(reading)] == [["hello"], ["2"]]
    append(history, 3, 4)
    assert list(reading) == [["4"]]


def test_a_reader_overtaken_by_the_trimming_begins_anew() -> None:
    history = history_of(4, limit=4)
    reading = read(history, Position("e", 0))
    assert [next(reading), next(reading)] == [["hello"], ["2", "4"]]
    append(history, *range(5, 12))
    assert next(reading) == ["trimmed@e:11"]
    append(history, *range(12, 20))
    assert next(reading) == ["trimmed@e:19"]
    append(history, 20)
    assert list(reading) == [["20"]]


def test_a_reader_overtaken_by_another_epoch_begins_anew_even_if_its_sequence_fits() -> None:
    history = history_of(4)
    reading = read(history, Position("e", 2))
    assert next(reading) == ["hello"]
    history.begin("f", 0)
    append(history, 1, 2, 3, 4, 5, 6)
    assert list(reading) == [["epoch@f:6"]]


def test_what_is_owed_comes_last_and_what_happened_while_it_was_sent_after_it() -> None:
    history = history_of(2)
    owed = [[Frame(b"state")], []]
    reading = read(history, Position("e", 0), finish=lambda: owed.pop(0))
    assert [next(reading) for _ in range(3)] == [["hello"], ["2"], ["state"]]
    append(history, 3, 4)
    assert list(reading) == [["4"]]


def test_another_epoch_while_what_is_owed_waits_is_noticed() -> None:
    history = history_of(2)
    owed = [[Frame(b"state")], []]
    reading = read(history, Position("e", 2), finish=lambda: owed.pop(0))
    assert [next(reading), next(reading)] == [["hello"], ["state"]]
    history.begin("f", 2)
    assert list(reading) == [["epoch@f:2"]]
