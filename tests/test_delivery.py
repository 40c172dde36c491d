import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.auth import ANONYMOUS
from jobqueue_broadcast.delivery import Delivery, Group, Subscriber
from jobqueue_broadcast.events import JobCompleted, JobProgress
from jobqueue_broadcast.frames import Frame, TextWire
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.doubles import BrokenConnection, HandLoop, SlowConnection


class Bench:
    """A delivery with one group, whose members leave it when they are lost."""

    def __init__(self, outbox_limit: int = 1000, stall_limit: float = 10.0) -> None:
        self.clock = ManualClock()
        self.lost: list[Subscriber] = []
        self.delivery = Delivery(
            self.clock,
            outbox_limit=outbox_limit,
            stall_limit=stall_limit,
            on_lost=self.lose,
        )
        self.wire = TextWire()
        self.members: dict[Subscriber, None] = {}
        self.group = Group(self.wire, False, self.members)

    def lose(self, subscriber: Subscriber) -> None:
        self.lost.append(subscriber)
        self.delivery.flush_group(self.group)
        self.members.pop(subscriber, None)

    def join(self, connection: Any, name: str = "m") -> Subscriber:
        subscriber = Subscriber(self.delivery, "monitor", name, ANONYMOUS, connection, self.group)
        self.members[subscriber] = None
        if isinstance(connection, SlowConnection):
            connection.attach(subscriber)
        return subscriber

    def send(self, *frames: Frame) -> None:
        for each in frames:
            self.delivery.send(self.group, each)
        self.delivery.settle()


def frame(text: str = "x", size: int = 1) -> Frame:
    return Frame((text * size).encode())


def progress(text: str) -> Frame:
    return Frame(text.encode(), JobProgress(job_id="a", worker_id="w", progress=0.5))


def test_a_frame_is_written_to_all_at_once() -> None:
    bench = Bench()
    connections = [RecordingConnection(bench.wire) for _ in range(3)]
    for connection in connections:
        bench.join(connection)
    bench.send(frame("a"), frame("b"))
    assert all(each.payloads == [b"a", b"b"] and each.batches == 1 for each in connections)
    assert (bench.delivery.writes, bench.delivery.frames) == (3, 6)


def test_frames_of_a_turn_are_written_together_at_its_end() -> None:
    bench, loop = Bench(), HandLoop()
    connection = RecordingConnection(bench.wire)
    bench.join(connection)
    bench.delivery.schedule_with(loop.call_soon)
    bench.send(frame("a"))
    bench.send(frame("b"))
    assert connection.payloads == []
    assert loop.run() == 1
    assert (connection.payloads, connection.batches) == ([b"a", b"b"], 1)
    bench.send(frame("c"))
    assert (loop.run(), connection.batches) == (1, 2)


def test_a_loop_that_died_with_a_flush_takes_nothing_along() -> None:
    bench, dead, loop = Bench(), HandLoop(), HandLoop()
    connection = RecordingConnection(bench.wire)
    bench.join(connection)
    bench.delivery.schedule_with(dead.call_soon)
    bench.send(frame("a"))
    bench.delivery.schedule_with(loop.call_soon)
    bench.send(frame("b"))
    loop.run()
    assert connection.payloads == [b"a", b"b"]
    bench.send(frame("c"))
    bench.delivery.schedule_with(None)
    bench.delivery.settle()
    assert connection.payloads == [b"a", b"b", b"c"]


def test_a_reply_comes_after_what_is_pending_for_its_group() -> None:
    bench, loop = Bench(), HandLoop()
    first, second = RecordingConnection(bench.wire), RecordingConnection(bench.wire)
    subscriber = bench.join(first)
    bench.delivery.schedule_with(loop.call_soon)
    bench.send(frame("1"))
    bench.delivery.send_to(subscriber, [frame("alone")])
    bench.delivery.flush_group(bench.group)
    bench.join(second)
    bench.send(frame("2"))
    bench.delivery.send_to(subscriber, [frame("reply")])
    bench.send(frame("3"))
    loop.run()
    assert first.payloads == [b"1", b"alone", b"2", b"reply", b"3"]
    assert second.payloads == [b"2", b"3"]


def test_a_large_batch_is_written_in_pieces_so_that_a_slow_one_can_say_stop() -> None:
    bench = Bench(outbox_limit=10_000_000)
    slow, fast = SlowConnection(room=1000, wire=bench.wire), RecordingConnection(bench.wire)
    subscriber = bench.join(slow)
    bench.join(fast)
    frames = [frame(chr(97 + number), 40_000) for number in range(6)]
    for each in frames:
        bench.delivery.send(bench.group, each)
    bench.delivery.settle()
    assert (slow.writes, len(slow.buffer), slow.written_while_paused) == (1, 2, 0)
    assert subscriber.waiting == 160_000 == bench.delivery.waiting
    assert (fast.batches, len(fast.payloads)) == (3, 6)
    bench.delivery.send_to(subscriber, [frame("z")])
    slow.read()
    assert slow.received == [each.payload for each in frames] + [b"z"]
    assert not subscriber.behind


def test_a_reply_to_a_group_of_many_is_written_in_pieces_too() -> None:
    bench = Bench(outbox_limit=10_000_000)
    slow = SlowConnection(room=1000, wire=bench.wire)
    subscriber = bench.join(slow)
    bench.join(RecordingConnection(bench.wire))
    bench.delivery.send_to(subscriber, [frame("a", 70_000), frame("b", 70_000)])
    assert (len(slow.buffer), subscriber.waiting) == (1, 70_000)


def test_who_is_behind_gets_the_newest_and_who_is_not_gets_all() -> None:
    bench = Bench()
    slow, fast = SlowConnection(wire=bench.wire), RecordingConnection(bench.wire)
    subscriber = bench.join(slow)
    bench.join(fast)
    bench.send(frame("first"))
    for text in ("p1", "p2", "p3"):
        bench.send(progress(text))
    assert (bench.delivery.conflated, bench.delivery.behind_count) == (2, 1)
    slow.read()
    assert slow.received == [b"first", b"p3"]
    assert fast.payloads == [b"first", b"p1", b"p2", b"p3"]
    assert (subscriber.waiting, bench.delivery.waiting) == (0, 0)


def test_too_much_for_an_outbox_closes_that_connection_alone() -> None:
    bench = Bench(outbox_limit=3)
    slow, fast = SlowConnection(wire=bench.wire), RecordingConnection(bench.wire)
    subscriber = bench.join(slow)
    bench.join(fast)
    for text in "abcde":
        bench.send(frame(text))
    assert slow.closed == (4408, "too slow: its outbox of 3 bytes is full")
    assert (bench.lost, subscriber.connected, bench.delivery.too_slow) == ([subscriber], False, 1)
    assert fast.payloads == [b"a", b"b", b"c", b"d", b"e"]
    assert bench.delivery.behind_count == 0


def test_a_connection_that_raises_is_dropped_and_the_others_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    broken, good = BrokenConnection(), RecordingConnection(bench.wire)
    subscriber = bench.join(broken)
    bench.join(good)
    with caplog.at_level(logging.WARNING, "jobqueue_broadcast"):
        bench.send(frame("a"))
    bench.send(frame("b"))
    assert (good.payloads, broken.calls) == ([b"a", b"b"], ["write", "abort"])
    assert (bench.lost, bench.delivery.write_errors) == ([subscriber], 1)
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(error) for error in errors] == ["write failed", "abort failed"]


@pytest.mark.parametrize("how", ["drain", "backlog", "close"])
def test_no_method_that_raises_reaches_the_caller(how: str) -> None:
    bench = Bench()
    subscriber = bench.join(BrokenConnection())
    subscriber.pause()
    bench.send(frame("a"))
    match how:
        case "drain":
            subscriber.resume()
        case "backlog":
            bench.delivery.check_stalls()
        case _:
            bench.delivery.close_replaced(subscriber)
    assert (bench.lost, subscriber.connected, bench.delivery.behind_count) == (
        [subscriber],
        False,
        0,
    )


def test_a_connection_may_leave_while_it_is_written_to() -> None:
    bench = Bench()
    written: list[str] = []

    class Leaving(RecordingConnection):
        def __init__(self, name: str) -> None:
            super().__init__(bench.wire)
            self.name = name

        def write(self, batch: Any, /) -> None:
            written.append(self.name)
            for subscriber in list(bench.members):
                if subscriber.id in ("b", "c"):
                    bench.delivery.forget(subscriber)
                    bench.lose(subscriber)

    for name in ("a", "b", "c", "d"):
        bench.join(Leaving(name), name)
    bench.send(frame("x"))
    bench.send(frame("y"))
    assert written == ["a", "d", "a", "d"]


def test_what_is_broadcast_from_within_a_write_comes_after() -> None:
    bench = Bench()
    again = [frame("2")]

    class Echo(RecordingConnection):
        def write(self, batch: Any, /) -> None:
            super().write(batch)
            while again:
                bench.send(again.pop())

    first, second = Echo(bench.wire), RecordingConnection(bench.wire)
    bench.join(first)
    bench.join(second)
    bench.send(frame("1"))
    assert first.payloads == second.payloads == [b"1", b"2"]


def test_nothing_is_sent_to_somebody_else_in_place_of_who_is_gone() -> None:
    bench = Bench()
    gone, other = RecordingConnection(bench.wire), RecordingConnection(bench.wire)
    subscriber = bench.join(gone)
    bench.join(other)
    bench.delivery.close(subscriber, 1001, "bye")
    bench.delivery.close(subscriber, 1001, "bye")
    bench.delivery.send_to(subscriber, [frame("private")])
    bench.delivery.settle()
    assert (other.payloads, gone.payloads, gone.closed) == ([], [], (1001, "bye"))
    assert bench.lost == [subscriber]


@pytest.mark.parametrize(
    ("close", "expected", "closed"),
    [
        (
            lambda delivery, subscriber: delivery.close(subscriber, 1001, "bye"),
            [b"a", b"b"],
            (1001, "bye"),
        ),
        (Delivery.close_replaced, [b"a"], (4409, "replaced by a newer connection")),
    ],
)
def test_what_waits_goes_out_before_a_close_unless_replaced(
    close: Callable[[Delivery, Subscriber], None], expected: list[bytes], closed: tuple[int, str]
) -> None:
    bench = Bench()
    slow = SlowConnection(wire=bench.wire)
    subscriber = bench.join(slow)
    bench.send(frame("a"))
    bench.send(Frame(b"b", JobCompleted(job_id="a", worker_id="w")))
    close(bench.delivery, subscriber)
    slow.read()
    assert (slow.received, slow.closed) == (expected, closed)
    close(bench.delivery, subscriber)
    assert bench.lost == [subscriber]


def test_one_replaced_that_breaks_meanwhile_is_lost_once() -> None:
    bench = Bench()
    loop = HandLoop()
    bench.delivery.schedule_with(loop.call_soon)
    subscriber = bench.join(BrokenConnection())
    bench.send(frame("a"))
    bench.delivery.close_replaced(subscriber)
    assert bench.lost == [subscriber]


def test_a_close_that_finds_the_connection_broken_or_too_slow_ends_it_once() -> None:
    bench = Bench(outbox_limit=1)
    slow = SlowConnection(wire=bench.wire)
    subscriber = bench.join(slow)
    bench.send(frame("a"))
    slow.broken = True
    bench.send(frame("b"))
    bench.delivery.close(subscriber, 1001, "bye")
    assert (slow.aborted, slow.closed, bench.lost) == (True, None, [subscriber])


def test_who_takes_nothing_is_aborted_and_who_takes_a_little_is_not() -> None:
    bench = Bench(stall_limit=10)
    stalled, slow = SlowConnection(wire=bench.wire), SlowConnection(wire=bench.wire)
    lost = bench.join(stalled)
    bench.join(slow)
    for number in range(40):
        bench.send(frame(str(number), 10))
    for _ in range(21):
        bench.delivery.check_stalls()
        bench.clock.advance(0.5)
        slow.read(1)
    bench.delivery.check_stalls()
    assert (stalled.aborted, slow.aborted) == (True, False)
    assert (bench.delivery.stalled, bench.lost) == (1, [lost])


def test_an_abort_that_takes_others_along_leaves_nothing_to_check() -> None:
    bench = Bench(stall_limit=0)
    connections = [SlowConnection(wire=bench.wire) for _ in range(2)]
    subscribers = [bench.join(connection) for connection in connections]
    bench.send(frame("a"))
    bench.delivery.check_stalls()

    def abort_all() -> None:
        for each in subscribers:
            bench.delivery.forget(each)

    connections[0].abort = abort_all  # type: ignore[method-assign]
    bench.delivery.check_stalls()
    assert bench.delivery.stalled == 1


def test_pausing_one_that_is_gone_changes_nothing() -> None:
    bench = Bench()
    subscriber = bench.join(RecordingConnection(bench.wire))
    bench.delivery.abort(subscriber)
    subscriber.pause()
    subscriber.resume()
    assert bench.delivery.behind_count == 0


# --- catching up ----------------------------------------------------------------------------------


def past(*chunks: list[Frame]) -> Iterator[list[Frame]]:
    yield from chunks


def test_the_past_comes_at_the_pace_of_its_reader_and_live_frames_are_left_to_it() -> None:
    bench = Bench()
    slow, other = SlowConnection(wire=bench.wire), RecordingConnection(bench.wire)
    subscriber = bench.join(slow)
    bench.join(other)
    source = past([frame("1")], [], [frame("2")], [frame("3")])
    bench.delivery.catch_up(subscriber, source)
    assert (subscriber.caught_up, list(slow.buffer)) == (False, [b"1"])
    bench.send(frame("live"))
    bench.delivery.send_to(subscriber, [frame("reply")])
    slow.read()
    assert slow.received == [b"1", b"2", b"3", b"reply"]
    assert (subscriber.caught_up, subscriber.behind, other.payloads) == (True, False, [b"live"])


def test_the_past_begins_when_the_turn_is_over_and_is_written_in_pieces() -> None:
    bench, loop = Bench(), HandLoop()
    bench.delivery.schedule_with(loop.call_soon)
    slow = SlowConnection(room=1000, wire=bench.wire)
    subscriber = Subscriber(bench.delivery, "monitor", "m", ANONYMOUS, slow, bench.group)
    bench.members[subscriber] = None
    bench.delivery.catch_up(subscriber, past([frame("a", 70_000), frame("b", 70_000)]))
    assert slow.writes == 0
    slow.attach(subscriber)
    loop.run()
    assert (slow.writes, slow.written_while_paused) == (1, 0)
    slow.read()
    assert len(slow.received) == 2


def test_one_piece_of_the_past_is_written_a_turn() -> None:
    bench, loop = Bench(), HandLoop()
    bench.delivery.schedule_with(loop.call_soon)
    slow = SlowConnection(room=1000, wire=bench.wire)
    subscriber = bench.join(slow)
    bench.delivery.catch_up(subscriber, past([frame("1")], [frame("2")], [frame("3")]))
    seen = []
    while not subscriber.caught_up:
        turn = [loop.scheduled.popleft() for _ in list(loop.scheduled)]
        for call in turn:
            call()
        seen.append(slow.writes)
    assert seen == [1, 2, 3, 3]
    assert [*slow.received, *slow.buffer] == [b"1", b"2", b"3"]
    loop.run()
    assert slow.writes == 3


def test_a_transport_that_has_room_again_does_not_double_the_past() -> None:
    bench, loop = Bench(), HandLoop()
    bench.delivery.schedule_with(loop.call_soon)
    slow = SlowConnection(room=1000, wire=bench.wire)
    subscriber = bench.join(slow)
    bench.delivery.catch_up(subscriber, past([frame("1")], [frame("2")], [frame("3")]))
    for _ in range(5):
        subscriber.resume()
    loop.run()
    assert [*slow.received, *slow.buffer] == [b"1", b"2", b"3"]
    assert not subscriber.behind


def test_a_past_goes_on_in_another_loop() -> None:
    bench, dead, loop = Bench(), HandLoop(), HandLoop()
    bench.delivery.schedule_with(dead.call_soon)
    slow = SlowConnection(wire=bench.wire)
    subscriber = bench.join(slow)
    bench.delivery.catch_up(subscriber, past([frame("1")], [frame("2")], [frame("3")]))
    bench.delivery.schedule_with(loop.call_soon)
    while not subscriber.caught_up:
        loop.run()
        slow.read()
    assert slow.received == [b"1", b"2", b"3"]


def test_a_past_whose_turn_never_ended_is_begun_without_its_loop() -> None:
    bench, dead = Bench(), HandLoop()
    bench.delivery.schedule_with(dead.call_soon)
    connection = RecordingConnection(bench.wire)
    bench.delivery.catch_up(bench.join(connection), past([frame("1")]))
    bench.delivery.schedule_with(None)
    assert connection.payloads == [b"1"]
    dead.run()
    assert connection.payloads == [b"1"]


def test_calls_are_made_in_order_once_caught_up_and_none_after_the_end() -> None:
    bench = Bench()
    slow = SlowConnection(wire=bench.wire)
    subscriber = bench.join(slow)
    made: list[str] = []
    subscriber.when_caught_up(lambda: made.append("at once"))
    bench.delivery.catch_up(subscriber, past([frame("1")], [frame("2")]))

    def send() -> None:
        made.append("send")
        bench.delivery.send_to(subscriber, [frame("reply")])

    def close() -> None:
        made.append("close")
        bench.delivery.close(subscriber, 1001, "bye")

    calls: list[Callable[[], None]] = [send, close, lambda: made.append("never")]
    for call in calls:
        subscriber.when_caught_up(call)
    assert made == ["at once"]
    slow.read()
    assert made == ["at once", "send", "close"]
    assert (slow.received, slow.closed) == ([b"1", b"2", b"reply"], (1001, "bye"))
    assert bench.delivery.behind_count == 0


def test_who_asks_too_much_while_it_catches_up_is_closed() -> None:
    bench = Bench()
    slow = SlowConnection(wire=bench.wire)
    subscriber = bench.join(slow)
    bench.delivery.catch_up(subscriber, past([frame("1")], [frame("2")]))
    for _ in range(1024):
        subscriber.when_caught_up(lambda: None)
    assert subscriber.connected
    subscriber.when_caught_up(lambda: None)
    assert slow.closed == (4408, "too slow: too many commands wait")
    slow.read()
    assert slow.received == [b"1"]


def test_a_reader_that_breaks_while_it_catches_up_is_dropped() -> None:
    bench = Bench()
    slow = SlowConnection(wire=bench.wire)
    subscriber = bench.join(slow)
    bench.delivery.catch_up(subscriber, past([frame("1")], [frame("2")]))
    slow.broken = True
    slow.read()
    assert (slow.aborted, bench.lost, repr(subscriber)) == (
        True,
        [subscriber],
        "Subscriber(monitor 'm')",
    )


@given(
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(["send", "reply", "read", "loop", "flush"]), st.integers(0, 3)),
        max_size=40,
    ),
)
def test_each_connection_sees_its_frames_in_the_order_they_were_sent(
    batched: bool, steps: list[tuple[str, int]]
) -> None:
    bench, loop = Bench(outbox_limit=1_000_000), HandLoop()
    if batched:
        bench.delivery.schedule_with(loop.call_soon)
    connections = [SlowConnection(room, bench.wire) for room in (0, 3, 10, 1_000_000)]
    subscribers = [bench.join(connection) for connection in connections]
    expected: list[list[bytes]] = [[] for _ in connections]
    for number, (step, who) in enumerate(steps):
        sent = frame(f"{number},")
        match step:
            case "send":
                bench.send(sent)
                for each in expected:
                    each.append(sent.payload)
            case "reply":
                bench.delivery.send_to(subscribers[who], [sent])
                bench.delivery.settle()
                expected[who].append(sent.payload)
            case "read":
                connections[who].read(2)
            case "loop":
                loop.run()
            case _:
                bench.delivery.flush()
    loop.run()
    for connection, frames in zip(connections, expected, strict=True):
        connection.read()
        assert connection.received == frames
        assert connection.written_while_paused == 0


def test_resuming_one_that_is_not_behind_changes_nothing() -> None:
    bench = Bench()
    subscriber = bench.join(RecordingConnection(bench.wire))
    subscriber.resume()
    assert (subscriber.behind, bench.delivery.writes) == (False, 0)
