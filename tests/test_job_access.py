from unittest.mock import patch

import msgspec

from jobqueue_broadcast.auth import ANONYMOUS, Action, Principal
from jobqueue_broadcast.events import JobData, JobSubmitted
from tests.conversation import ALICE, BOB, Bench, error, raising, settle


def test_someone_elses_job_and_no_job_get_the_same_answer() -> None:
    bench = Bench()
    bench.broadcaster.accept_job("hers", ALICE)
    bench.hooks["cancel"] = lambda *_: None
    bob = bench.client(BOB)
    commands = ("subscribe_progress", "get_job_status", "cancel_job")
    answers = [bob.say(type=kind, job_id=job) for kind in commands for job in ("hers", "none")]
    assert answers == [[error("not_found", "no such job, or it is not yours")]] * 6
    bench.hooks["authorize"] = lambda *_: "yes"  # not `True`
    bob = bench.client(BOB, "d")
    assert [bob.say(type=kind, job_id="hers") for kind in commands] == answers[:3]
    alice = bench.client(ALICE, "e")
    kinds = [alice.say(type=kind, job_id="hers")[0]["type"] for kind in commands]
    assert kinds == ["subscribed", "job_status", "job_cancelled"]


def test_an_authorize_that_fails_does_not_tell_its_jobs_apart() -> None:
    bench = Bench()
    bench.broadcaster.accept_job("hers", ALICE)
    bench.hooks["authorize"] = raising(KeyError("secret"))
    bob = bench.client(BOB)
    for job in ("hers", "none"):
        assert bob.say(type="get_job_status", job_id=job, message_id="1") == [
            error("not_found", "no such job, or it is not yours", message_id="1")
        ]


def test_who_submitted_a_job_is_not_asked_about_and_others_are() -> None:
    bench = Bench()
    asked: list[tuple[str, Action, str]] = []

    def authorize(principal: Principal, action: Action, job_id: str) -> bool:
        asked.append((principal.id, action, job_id))
        return True

    bench.broadcaster.accept_job("hers", ALICE)
    bench.hooks["authorize"] = authorize
    for principal in (ALICE, BOB, ANONYMOUS):
        answer = bench.client(principal, principal.id).say(type="get_job_status", job_id="hers")
        assert [frame["type"] for frame in answer] == ["job_status"]
    assert asked == [("bob", "status", "hers"), ("anonymous", "status", "hers")]


def test_a_hook_that_ends_after_its_client_left_is_not_answered() -> None:
    bench = Bench()
    bench.hooks = {"authorize": lambda *_: True, "cancel": lambda *_: None}
    talk = bench.client(ALICE)
    asks = [talk.ask(type=kind, job_id="a") for kind in ("get_job_status", "cancel_job")]
    bench.broadcaster.remove_client("c", talk.connection)
    for ask in asks:
        settle(ask)
    assert talk.connection.take() == []


def test_a_job_unknown_here_is_looked_up_first() -> None:
    bench = Bench()
    data = JobData(id="a", job_type="x", created_at=1)
    kept = [msgspec.json.encode(JobSubmitted(job_id="a", job_data=data, timestamp=1))]
    with patch.object(bench.broadcaster, "look_up", lambda _: lambda: kept):
        talk = bench.client()
        answer = talk.say(type="get_job_status", job_id="a")
        assert answer[0]["job"]["job_type"] == "x"
        gone = talk.ask(type="get_job_status", job_id="a")
        bench.broadcaster.remove_client("c", talk.connection)
        settle(gone)
        assert talk.connection.take() == []
    with patch.object(bench.broadcaster, "look_up", lambda _: raising(OSError("secret"))):
        assert bench.client().say(type="get_job_status", job_id="b")[0]["code"] == "internal"
