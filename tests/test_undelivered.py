import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import call, create_autospec

import pytest

from jobqueue_broadcast.backplane import RemoteBackplane
from jobqueue_broadcast.events import JobEvent, JobFailed
from jobqueue_broadcast.undelivered import UndeliveredOutcomes


def outcome(job_id: str) -> JobFailed:
    return JobFailed(job_id=job_id, error="e", timestamp=1)


def never(_: str) -> bool:
    return False


def test_an_outcome_nobody_takes_is_reported_once_when_its_time_is_over() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    waiting.add(outcome("job-1"), 1, now=0)
    waiting.add(outcome("job-2"), 2, now=5)
    waiting.expire(29.9, never)
    assert (reported, len(waiting), waiting.reported) == ([], 2, 0)
    waiting.expire(30, never)
    assert (reported, len(waiting), waiting.reported) == ([outcome("job-1")], 1, 1)
    waiting.expire(100, never)
    waiting.expire(100, never)
    assert reported == [outcome("job-1"), outcome("job-2")]
    assert (len(waiting), waiting.reported) == (0, 2)


def test_an_outcome_that_was_taken_is_not_reported() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    waiting.add(outcome("job-1"), 1, now=0)
    waiting.taken("job-1")
    waiting.taken("job-9")
    waiting.took(7)
    assert len(waiting) == 0
    waiting.expire(100, never)
    assert reported == []


def test_a_client_that_took_it_meanwhile_is_asked_for_at_the_end() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    waiting.add(outcome("job-1"), 1, now=0)
    waiting.add(outcome("job-2"), 2, now=0)
    waiting.expire(30, lambda job_id: job_id == "job-1")
    assert reported == [outcome("job-2")]
    assert (len(waiting), waiting.reported) == (0, 1)


def test_a_second_outcome_of_a_job_takes_the_place_and_time_of_the_first() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    again = JobFailed(job_id="job-1", error="again", timestamp=2)
    waiting.add(outcome("job-1"), 1, now=0)
    waiting.add(outcome("job-2"), 2, now=1)
    waiting.add(again, 3, now=2)
    waiting.expire(31.5, never)
    assert reported == [outcome("job-2")]
    waiting.expire(32, never)
    assert reported == [outcome("job-2"), again]


def test_past_the_limit_the_oldest_is_reported_early() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=2)
    for number in range(4):
        waiting.add(outcome(f"job-{number}"), number, now=0)
    assert reported == [outcome("job-0"), outcome("job-1")]
    assert (len(waiting), waiting.reported) == (2, 2)


def test_without_a_hook_nothing_waits() -> None:
    waiting = UndeliveredOutcomes(None, after=30, limit=2)
    waiting.add(outcome("job-1"), 1, now=0)
    waiting.expire(100, never)
    assert (len(waiting), waiting.reported) == (0, 0)


def test_a_hook_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def hook(event: JobEvent) -> None:
        calls.append(event.job_id)
        raise ZeroDivisionError

    waiting = UndeliveredOutcomes(hook, after=0, limit=10)
    waiting.add(outcome("job-1"), 1, now=0)
    waiting.add(outcome("job-2"), 2, now=0)
    with caplog.at_level(logging.ERROR, "jobqueue_broadcast"):
        waiting.expire(0, never)
    assert calls == ["job-1", "job-2"]
    assert [record.getMessage() for record in caplog.records] == [
        "on_undelivered failed for job job-1",
        "on_undelivered failed for job job-2",
    ]


def test_a_hook_may_bring_about_another_outcome() -> None:
    reported: list[str] = []

    def hook(event: JobEvent) -> None:
        reported.append(event.job_id)
        if event.job_id == "job-1":
            waiting.add(outcome("job-2"), 2, now=30)

    waiting = UndeliveredOutcomes(hook, after=30, limit=10)
    waiting.add(outcome("job-1"), 1, now=0)
    waiting.expire(30, never)
    assert (reported, len(waiting)) == (["job-1"], 1)
    waiting.expire(60, never)
    assert reported == ["job-1", "job-2"]


def test_a_job_that_runs_again_is_forgotten() -> None:
    reported: list[JobEvent] = []
    waiting = UndeliveredOutcomes(reported.append, after=30, limit=10)
    waiting.add(outcome("job-1"), 1, now=0)
    waiting.forget("job-1")
    waiting.forget("job-1")
    waiting.expire(100, never)
    assert reported == []


def test_an_outcome_of_before_waits_for_the_rest_of_its_time() -> None:
    reported: list[str] = []
    waiting = UndeliveredOutcomes(lambda event: reported.append(event.job_id), after=30, limit=10)
    for age, job_id in ((331, "long ago"), (330, "late"), (10, "early")):
        waiting.add(outcome(job_id), 1, now=1000, age=age)
    assert len(waiting) == 2
    waiting.expire(1019, never)
    assert reported == ["late"]
    waiting.expire(1020, never)
    assert reported == ["late", "early"]


# --- with other nodes -----------------------------------------------------------------------------


class Nodes:
    """This node's outcomes, and what the others answer; asked, they wait to be let answer."""

    def __init__(self, *, hook: bool = True, limit: int = 10) -> None:
        self.reported: list[str] = []
        self.asked: list[tuple[int, Callable[[bool], object]]] = []
        self.remote: Any = create_autospec(RemoteBackplane, instance=True)
        self.remote.report.side_effect = lambda sequence, _, then: self.asked.append(
            (sequence, then)
        )
        self.waiting = UndeliveredOutcomes(
            self._hook if hook else None, after=30, limit=limit, remote=self.remote
        )

    def _hook(self, event: JobEvent) -> None:
        self.reported.append(event.job_id)

    def told(self) -> list[Any]:
        return list(self.remote.took.call_args_list)


def test_the_first_of_all_nodes_reports() -> None:
    nodes = Nodes()
    for number, job_id in enumerate(("first", "not first")):
        nodes.waiting.add(outcome(job_id), number, now=0)
    # The others are given time to say that a client of theirs took it.
    for now, asked in ((30, []), (34.9, []), (35, [0, 1])):
        nodes.waiting.expire(now, never)
        assert [sequence for sequence, _ in nodes.asked] == asked
        assert len(nodes.waiting) == 2 - len(asked)
    assert nodes.reported == []
    for (_, then), first in zip(nodes.asked, (True, False), strict=True):
        then(first)
    assert (nodes.reported, nodes.waiting.reported) == (["first"], 1)
    assert nodes.told() == []


def test_the_others_are_told_what_was_taken_here() -> None:
    nodes = Nodes()
    nodes.waiting.took(1)
    for number in (2, 3, 4, 5):
        nodes.waiting.add(outcome(f"job-{number}"), number, now=0)
    nodes.waiting.taken("job-2")
    nodes.waiting.taken("unknown")
    nodes.waiting.forget("job-3")
    nodes.waiting.expire(30, lambda job_id: job_id == "job-4")
    nodes.waiting.taken("job-5")  # while they were given their time
    # Known for longer than a node that starts may still report it.
    assert nodes.told() == [call(sequence, 630) for sequence in (1, 2, 4, 5)]
    assert len(nodes.waiting) == 0


def test_a_job_that_runs_again_is_not_asked_about() -> None:
    nodes = Nodes()
    nodes.waiting.add(outcome("job-1"), 1, now=0)
    nodes.waiting.expire(30, never)
    nodes.waiting.forget("job-1")
    nodes.waiting.expire(100, never)
    assert (nodes.asked, nodes.told()) == ([], [])


def test_past_the_limit_the_oldest_is_asked_about_early() -> None:
    nodes = Nodes(limit=2)
    nodes.waiting.add(outcome("job-1"), 1, now=0)
    nodes.waiting.expire(30, never)
    nodes.waiting.add(outcome("job-2"), 2, now=30)
    nodes.waiting.add(outcome("job-3"), 3, now=30)
    nodes.waiting.add(outcome("job-4"), 4, now=30)
    assert [sequence for sequence, _ in nodes.asked] == [1, 2]
    assert len(nodes.waiting) == 2


def test_a_node_without_a_hook_tells_and_does_not_ask() -> None:
    nodes = Nodes(hook=False, limit=2)
    for number in (1, 2, 3, 4):
        nodes.waiting.add(outcome(f"job-{number}"), number, now=0)
    assert len(nodes.waiting) == 2
    nodes.waiting.taken("job-3")
    nodes.waiting.expire(100, never)
    assert len(nodes.waiting) == 0
    assert nodes.told() == [call(3, 630)]
    assert nodes.asked == []
