from collections import Counter

import pytest

from jobqueue_broadcast.answers import Answers
from jobqueue_broadcast.commands import JobCancelled
from jobqueue_broadcast.errors import HookRefusal
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.testing import RecordingConnection
from tests.conversation import ALICE, BOB, NOW, Bench, Talk, error, raising, settle
from tests.doubles import HandLoop


def answers_to(talk: Talk) -> tuple[Answers, Counter[str]]:
    errors: Counter[str] = Counter()
    return Answers(talk.session.broadcaster, talk.session.subscriber, errors), errors


def test_answers_are_given_at_once_and_their_errors_are_counted() -> None:
    bench = Bench()
    talk = bench.client()
    answers, errors = answers_to(talk)
    bench.clock.advance(1)
    answers.reply(JobCancelled(timestamp=answers.now, job_id="a"))
    answers.not_found("1")
    answers.error("unsupported", "not here")
    cancelled, not_found, unsupported = talk.connection.take()
    assert cancelled == {"type": "job_cancelled", "timestamp": NOW + 1000, "job_id": "a"}
    assert not_found | {"timestamp": NOW} == error(
        "not_found", "no such job, or it is not yours", message_id="1"
    )
    assert unsupported | {"timestamp": NOW} == error("unsupported", "not here")
    assert errors == {"not_found": 1, "unsupported": 1}


def test_answers_come_after_what_is_pending_and_after_the_past() -> None:
    bench, loop = Bench(), HandLoop()
    for _ in range(3):
        bench.submit()
    bench.broadcaster.bind(loop.call_soon, loop.call_soon)
    connection = RecordingConnection()
    begin = Position(bench.broadcaster.history.epoch, 0)
    talk = Talk(
        bench.session(bench.broadcaster.add_monitor("m", connection, resume=begin)), connection
    )
    answers, _ = answers_to(talk)
    answers.not_found("1")
    answers.not_found("2")
    loop.run()
    bench.submit()
    answers.not_found("3")
    loop.run()
    seen = [frame.get("message_id", frame["type"]) for frame in connection.take()]
    assert seen == ["connected", *["job_submitted"] * 3, "1", "2", "job_submitted", "3"]


def test_whoever_left_is_not_answered() -> None:
    bench = Bench()
    for talk in (bench.client(), bench.monitor()):
        answers, errors = answers_to(talk)
        bench.broadcaster.remove_client("c", talk.connection)
        bench.broadcaster.remove_monitor("m", talk.connection)
        answers.not_found("1")
        assert talk.connection.take() == []
        assert errors == {"not_found": 1}


def test_a_client_that_came_back_is_answered_where_it_is_now() -> None:
    bench = Bench()
    before = bench.client(ALICE)
    answers, _ = answers_to(before)
    now = bench.client(ALICE)
    answers.not_found("1")
    assert [frame["message_id"] for frame in now.connection.take()] == ["1"]
    assert before.connection.take() == []


def test_a_hook_may_refuse_and_its_faults_do_not_leave_the_server() -> None:
    bench = Bench()
    talk = bench.client()
    answers, _ = answers_to(talk)
    answers.hook_failed(HookRefusal("no more today", "rate_limited"), "1")
    answers.hook_failed(ValueError("secret"), "2")
    assert talk.connection.take() == [
        error("rate_limited", "no more today", message_id="1"),
        error("internal", "the server could not do this", message_id="2"),
    ]


@pytest.mark.parametrize("words", ["é" * 2000, "\x00" * 2000, "👩‍🚀" * 500, "plain " * 500])
def test_an_answer_never_exceeds_its_limit_whatever_the_host_says(words: str) -> None:
    bench = Bench()
    bench.hooks["submit"] = raising(HookRefusal(words))
    talk = bench.client()
    settle(talk.ask(type="submit_job", job_type="x", message_id="\x01" * 128))
    assert 800 < len(talk.connection.payloads[0]) <= 1024


def test_a_hook_that_outlives_its_connection_answers_nobody_else() -> None:
    bench = Bench(client_retention=0.0)
    bench.hooks["submit"] = raising(HookRefusal("no more today"))
    first = bench.client(ALICE)
    running = first.ask(type="submit_job", job_type="x", message_id="1")
    bench.broadcaster.remove_client("c", first.connection)
    bench.clock.advance(1)
    bench.broadcaster.tick()
    other = bench.client(BOB)
    settle(running)
    assert other.connection.take() == []
