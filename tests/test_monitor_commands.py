from typing import Any

import pytest

from jobqueue_broadcast.events import JobProgress
from jobqueue_broadcast.positions import Position
from tests.conversation import NOW, Bench, error
from tests.doubles import HandLoop, SlowConnection


def test_a_monitor_replaces_its_topics_and_filters() -> None:
    bench = Bench()
    talk = bench.monitor()
    filters = {"job_types": ["x"], "worker_ids": ["w"], "priority_range": [0, 5]}
    assert talk.say(type="subscribe", topics=["system_stats", "jobs"], filters=filters) == [
        {
            "type": "subscribed",
            "timestamp": NOW,
            "monitor_id": "m",
            "topics": ["jobs", "system_stats"],
        }
    ]
    bench.broadcaster.broadcast(JobProgress(job_id="a", worker_id="w2", progress=0.5))
    assert talk.connection.take() == []
    assert talk.say(type="subscribe", topics=["jobs"], filters={})[0]["topics"] == ["jobs"]
    bench.broadcaster.broadcast(JobProgress(job_id="a", worker_id="w2", progress=0.5))
    assert len(talk.connection.take()) == 1


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ({"topics": ["nonsense"]}, "invalid_field", "topics: expected known topics"),
        (
            {"topics": ["jobs"], "filters": {"priority_range": [5, 1]}},
            "invalid_field",
            "priority_range: expected [min, max] with min <= max",
        ),
    ],
)
def test_a_subscription_that_makes_no_sense_is_answered_so(
    command: dict[str, Any], code: str, says: str
) -> None:
    talk = Bench().monitor()
    assert talk.say(type="subscribe", message_id="1", **command) == [
        error(code, says, message_id="1")
    ]


def test_a_monitor_asks_for_the_full_state_a_page_and_a_sign_of_life() -> None:
    bench = Bench()
    bench.submit()
    talk = bench.monitor()
    assert talk.say(type="request_full_state")[0]["data"] == bench.broadcaster.full_state()
    page = talk.say(type="resync_request", since_timestamp=0)[0]
    assert [event["type"] for event in page["events"]] == ["job_submitted"]
    assert page["oldest_available_timestamp"] == NOW
    for most in (1, 10**6):
        assert talk.say(type="resync_request", since_timestamp=0, max_events=most) == [page]
    assert talk.say(type="heartbeat", monitor_id="m") == [
        {"type": "heartbeat_ack", "timestamp": NOW, "monitor_id": "m", "server_timestamp": NOW}
    ]


def test_what_a_monitor_asks_while_it_catches_up_is_answered_after_it_in_order() -> None:
    bench, loop = Bench(), HandLoop()
    for _ in range(300):
        bench.submit()
    bench.broadcaster.bind(loop.call_soon, loop.call_soon)
    slow = SlowConnection()
    epoch = bench.broadcaster.history.epoch
    added = bench.broadcaster.add_monitor("m", slow, resume=Position(epoch, 0))
    slow.attach(added)
    loop.run()
    session = bench.session(added)
    for command in ("request_full_state", "nonsense", "heartbeat"):
        session.receive(f'{{"type":"{command}"}}')
    session.receive('{"type":"subscribe","topics":["machines"]}')
    bench.submit("late")
    for _ in range(3):
        slow.read()
        loop.run()
    answers = slow.frames[302:]
    assert [frame["type"] for frame in answers] == [
        "full_state_snapshot",
        "error",
        "heartbeat_ack",
        "subscribed",
    ]
    pending = answers[0]["data"]["jobs"]["pending"]
    assert [job["id"] for job in pending] == ["a", "late"]
