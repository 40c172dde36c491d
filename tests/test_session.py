from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.session import Hooks, Session, SessionLimits
from tests.conversation import Bench, settle


def test_a_conversation_begins_with_the_jobs_of_the_handshake() -> None:
    talk = Bench().client()
    settle(talk.session.open(["a", "b"]))
    assert [frame["job_id"] for frame in talk.connection.take()] == ["a", "b"]


def test_frames_that_are_not_understood_are_answered_and_binary_ones_end_it() -> None:
    talk = Bench().client()
    settle(talk.session.receive("{"))
    settle(talk.session.receive('{"type":"subscribe_progress"}'))
    assert [frame["code"] for frame in talk.connection.take()] == ["bad_json", "invalid_field"]
    settle(talk.session.receive(b"{}"))
    assert talk.connection.closed == (1003, "expected text frames")
    assert talk.session.receive("{") is None
    assert talk.connection.take() == []


def test_too_many_commands_are_refused_and_in_the_end_closed() -> None:
    bench = Bench()
    bench.limits = SessionLimits(command_rate=1, command_burst=3)
    talk = bench.monitor()
    for _ in range(3):
        assert talk.say(type="heartbeat")[0]["type"] == "heartbeat_ack"
    for _ in range(3):
        assert talk.say(type="heartbeat")[0]["code"] == "rate_limited"
    bench.clock.advance(1)
    assert talk.say(type="heartbeat")[0]["type"] == "heartbeat_ack"
    for _ in range(4):
        talk.say(type="heartbeat")
    assert talk.connection.closed == (4429, "too many commands")


def test_errors_are_counted_by_code() -> None:
    bench = Bench()
    bench.limits = SessionLimits(subscriptions_per_client=0, command_burst=4)
    client, monitor = bench.client(), bench.monitor()
    for talk, text in (
        (client, '{"type":"subscribe_progress","job_id":"a"}'),
        (client, "{"),
        (client, '{"type":"get_job_status","job_id":"a"}'),
        (client, '{"type":"cancel_job","job_id":"a"}'),
        (client, '{"type":"unsubscribe_progress","job_id":"a"}'),
        (monitor, '{"type":"subscribe","topics":["none"]}'),
    ):
        settle(talk.session.receive(text))
    assert bench.errors == {
        "forbidden": 1, "bad_json": 1, "not_found": 1, "unsupported": 1, "rate_limited": 1,
        "invalid_field": 1,
    }  # fmt: skip
    alone = Session(bench.broadcaster, client.session.subscriber, Hooks(), bench.limits)
    settle(alone.receive("{"))
    assert bench.errors["bad_json"] == 1


@given(st.text(max_size=40) | st.binary(max_size=20).map(lambda raw: raw.decode("latin-1")))
def test_no_frame_raises_and_no_answer_is_large(text: str) -> None:
    bench = Bench()
    for talk in (bench.monitor(), bench.client()):
        settle(talk.session.receive(text))
        for payload in talk.connection.payloads:
            assert len(payload) <= 1024
