"""Commands are answered once, in whatever order, over as many connections as it takes."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from jobqueue_broadcast.client._lane import Lane, raised_again
from jobqueue_broadcast.errors import CommandFailed, ConnectionEnded, ConnectRefused

pytestmark = pytest.mark.anyio


class Wire:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def __call__(self, payload: bytes) -> None:
        self.sent.append(payload)


def post(lane: Lane, *names: str) -> dict[str, object]:
    answers: dict[str, object] = {}

    def noting(name: str) -> Callable[[object], None]:
        return lambda answer: answers.update({name: answer})

    for name in names:
        lane.post(name, name.encode(), noting(name))
    return answers


def test_no_more_than_the_width_is_under_way() -> None:
    lane, wire = Lane(2), Wire()
    lane.connect(wire)
    answers = post(lane, "a", "b", "c", "d")
    assert wire.sent == [b"a", b"b"]
    assert lane.answer("b", 2)
    assert wire.sent == [b"a", b"b", b"c"]
    assert not lane.answer("b", 3), "a second answer is to nothing"
    assert answers == {"b": 2}
    assert lane.answer_oldest(1)
    assert answers == {"b": 2, "a": 1}


def test_another_connection_repeats_what_was_not_answered_in_order() -> None:
    lane, first, second = Lane(2), Wire(), Wire()
    answers = post(lane, "a", "b", "c")
    lane.connect(first)
    lane.answer("a", 1)
    lane.disconnect()
    assert not lane.answer_oldest(9), "nothing is under way without a connection"
    lane.connect(second)
    assert second.sent == [b"b", b"c"]
    assert answers == {"a": 1}


def test_held_commands_are_sent_again_and_a_late_answer_still_counts() -> None:
    lane, wire = Lane(2), Wire()
    lane.connect(wire)
    answers = post(lane, "a", "b")
    lane.hold()
    assert lane.answer("a", 1)
    lane.release()
    assert wire.sent == [b"a", b"b", b"b"]
    assert answers == {"a": 1}


def test_first_stays_first_over_a_reconnection() -> None:
    lane, wire = Lane(1), Wire()
    post(lane, "a")
    lane.post("first", b"first", lambda answer: None, first=True)
    lane.connect(wire)
    lane.disconnect()
    lane.connect(wire)
    assert wire.sent == [b"first", b"first"]


async def test_a_cancelled_command_is_withdrawn_if_it_was_not_sent() -> None:
    lane, wire = Lane(1), Wire()
    lane.connect(wire)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lane.ask, "sent", b"sent")
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(lane.ask, "waiting", b"waiting")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        answers = post(lane, "next")
        assert wire.sent == [b"sent"], "its answer would be taken for the next one's"
        lane.answer_oldest("late")
        assert wire.sent == [b"sent", b"next"]
        lane.answer_oldest("right")
        assert answers == {"next": "right"}


async def test_everyone_who_waits_is_told_of_the_end() -> None:
    lane = Lane(1)
    raised: list[Exception] = []

    async def ask(name: str) -> None:
        with pytest.raises(ConnectionEnded) as ended:
            await lane.ask(name, b"")
        raised.append(ended.value)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for name in ("a", "b"):
                tasks.start_soon(ask, name)
            await anyio.wait_all_tasks_blocked()
            lane.fail(ConnectionEnded(4409, "replaced"))
    assert raised[0] is not raised[1]
    assert len(lane) == 0


async def test_then_is_called_with_success_only() -> None:
    lane, wire, done = Lane(2), Wire(), list[str]()
    lane.connect(wire)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lane.ask, "a", b"a", lambda: done.append("a"))

            async def refused() -> None:
                with pytest.raises(CommandFailed):
                    await lane.ask("b", b"b", lambda: done.append("b"))

            tasks.start_soon(refused)
            await anyio.wait_all_tasks_blocked()
            lane.answer("b", CommandFailed("forbidden", "no"))
            lane.answer("a", 1)
    assert done == ["a"]


@pytest.mark.parametrize(
    "error",
    [ConnectionEnded(1009, "r"), ConnectRefused(403, "r"), CommandFailed("c", "e")],
)
def test_an_error_raised_again_is_equal_and_another(error: Exception) -> None:
    again = raised_again(error)
    assert again is not error
    assert type(again) is type(error)
    assert vars(again) == vars(error)


def test_errors_of_others_are_raised_as_they_are() -> None:
    error = OSError("the caller's")
    assert raised_again(error) is error
