from jobqueue_broadcast.auth import ANONYMOUS, Action, Principal
from jobqueue_broadcast.session import SessionLimits
from tests.conversation import ALICE, NOW, Bench, error, raising, settle


def test_a_client_subscribes_asks_and_unsubscribes() -> None:
    bench = Bench()
    bench.submit()
    talk = bench.client()
    assert talk.say(type="subscribe_progress", job_id="a", message_id="1") == [
        {"type": "subscribed", "timestamp": NOW, "job_id": "a", "message_id": "1"},
        {"type": "job_accepted", "timestamp": NOW, "job_id": "a", "status": "queued"},
    ]
    assert talk.say(type="get_job_status", job_id="a", message_id="2") == [
        {
            "type": "job_status",
            "timestamp": NOW,
            "job_id": "a",
            "message_id": "2",
            "job": {"id": "a", "job_type": "x", "status": "pending", "created_at": 1},
        }
    ]
    assert talk.say(type="unsubscribe_progress", job_id="a", message_id="3") == [
        {"type": "unsubscribed", "timestamp": NOW, "job_id": "a", "message_id": "3"}
    ]
    bench.complete()
    assert talk.connection.take() == []
    assert talk.say(type="get_job_status", job_id="b") == [
        error("not_found", "no such job, or it is not yours")
    ]


def test_the_jobs_of_the_handshake_are_subscribed_one_after_the_other() -> None:
    bench = Bench()
    allowed: list[str] = []

    def authorize(_: Principal, action: Action, job_id: str) -> bool:
        allowed.append(f"{action} {job_id}")
        return job_id != "no"

    talk = bench.client()
    assert talk.session.open(["a", "b"]) is None
    bench.hooks["authorize"] = authorize
    talk = bench.client(ALICE, "d")
    settle(talk.session.open(["a", "no", "b"]))
    assert allowed == ["subscribe a", "subscribe no", "subscribe b"]
    assert [frame["type"] for frame in talk.connection.take()] == [
        "subscribed",
        "error",
        "subscribed",
    ]
    assert talk.session.open([]) is None


def test_a_job_that_was_let_go_of_is_not_found() -> None:
    bench = Bench(job_retention=1)
    bench.complete()
    bench.clock.advance(1)
    bench.broadcaster.tick()
    answer = bench.client().say(type="subscribe_progress", job_id="a")
    assert [frame["code"] for frame in answer] == ["not_found"]


def test_a_client_has_room_for_so_many_subscriptions() -> None:
    bench = Bench()
    bench.limits = SessionLimits(subscriptions_per_client=1)
    bench.hooks["submit"] = lambda *_: "never"
    talk = bench.client()
    assert talk.say(type="subscribe_progress", job_id="a")[0]["type"] == "subscribed"
    for command in (
        {"type": "subscribe_progress", "job_id": "b"},
        {"type": "submit_job", "job_type": "x"},
    ):
        assert talk.say(**command)[0]["code"] == "forbidden"


def test_without_a_hook_no_jobs_are_taken() -> None:
    answer = Bench().client().say(type="submit_job", job_type="x", message_id="1")
    assert answer == [error("unsupported", "this server takes no jobs", message_id="1")]


def test_a_client_submits_a_job_and_is_subscribed_to_it() -> None:
    bench = Bench()
    bench.hooks["submit"] = lambda *_: "a"
    talk = bench.client()
    assert talk.say(type="submit_job", job_type="x", message_id="1") == [
        {"type": "job_accepted", "timestamp": NOW, "job_id": "a", "status": "queued"}
    ]
    assert bench.broadcaster.clients.jobs_of("c") == {"a"}


def test_a_job_is_cancelled_by_the_host() -> None:
    bench = Bench()
    talk = bench.client()
    command = {"type": "cancel_job", "job_id": "a", "message_id": "1"}
    assert talk.say(**command)[0]["code"] == "unsupported"
    cancelled: list[tuple[str, Principal]] = []
    bench.hooks["cancel"] = lambda *arguments: cancelled.append(arguments)
    talk = bench.client()
    assert talk.say(**command) == [
        {"type": "job_cancelled", "timestamp": NOW, "job_id": "a", "message_id": "1"}
    ]
    assert cancelled == [("a", ANONYMOUS)]
    bench.hooks["cancel"] = raising(ValueError("secret"))
    failed = error("internal", "the server could not do this", message_id="1")
    assert bench.client().say(**command) == [failed]


def test_a_cancellation_that_ends_after_its_client_left_is_not_answered() -> None:
    bench = Bench()
    bench.hooks["cancel"] = lambda *_: None
    talk = bench.client()
    ask = talk.ask(type="cancel_job", job_id="a")
    bench.broadcaster.remove_client("c", talk.connection)
    settle(ask)
    assert talk.connection.take() == []
