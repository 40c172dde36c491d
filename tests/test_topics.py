import pytest
from hypothesis import given

from jobqueue_broadcast import events as ev
from jobqueue_broadcast import topics
from jobqueue_broadcast.errors import InvalidArgument, UndeclaredEvent, UnknownTopic
from jobqueue_broadcast.events import Event, event_type
from jobqueue_broadcast.topics import (
    ALL_TOPICS,
    TOPICS_OF_TYPE,
    Topic,
    add_topics,
    event_topics,
    known_topics,
    members,
    parse_topics,
)
from tests import strategies as some

# Wire protocol, section 2, row by row.
PROTOCOL = {
    ev.WorkerConnected: {"workers"},
    ev.WorkerDisconnected: {"workers"},
    ev.WorkerStatusChanged: {"workers"},
    ev.ConnectorStatusChanged: {"workers"},
    ev.MachineStartup: {"machines"},
    ev.MachineStartupStep: {"machines"},
    ev.MachineStartupComplete: {"machines"},
    ev.MachineShutdown: {"machines"},
    ev.MachineUpdate: {"machines"},
    ev.MachineStatusChange: {"machines"},
    ev.MachineDisconnected: {"machines"},
    ev.JobSubmitted: {"jobs", "jobs:status"},
    ev.JobAssigned: {"jobs", "jobs:status"},
    ev.JobStatusChanged: {"jobs", "jobs:status"},
    ev.JobCompleted: {"jobs", "jobs:status"},
    ev.JobFailed: {"jobs", "jobs:status"},
    ev.JobProgress: {"jobs", "jobs:progress"},
    ev.SystemStats: {"system_stats"},
}


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that a test enters are gone after it."""
    monkeypatch.setattr(topics, "TOPICS_OF_TYPE", dict(TOPICS_OF_TYPE))


def test_the_topics_are_those_of_the_specification() -> None:
    assert {
        "workers",
        "machines",
        "jobs",
        "jobs:status",
        "jobs:progress",
        "system_stats",
        "heartbeat",
    } == ALL_TOPICS
    assert {topic.value for topic in Topic} == ALL_TOPICS


@pytest.mark.parametrize("cls", ev.EVENT_CLASSES)
def test_each_event_has_the_topics_of_the_protocol(cls: type[Event]) -> None:
    assert event_topics(cls) == PROTOCOL[cls]


def test_every_event_of_the_protocol_exists() -> None:
    assert set(PROTOCOL) == set(ev.EVENT_CLASSES)
    built_in = {event_type(cls) for cls in ev.EVENT_CLASSES}
    assert built_in | {"heartbeat_ack"} <= set(TOPICS_OF_TYPE)


def test_heartbeats_have_a_topic_of_their_own() -> None:
    assert TOPICS_OF_TYPE["heartbeat_ack"] == {"heartbeat"}


@given(some.events())
def test_an_event_has_the_topics_of_its_class(event: Event) -> None:
    assert event_topics(event) == PROTOCOL[type(event)]


def test_topics_are_plain_strings() -> None:
    """Not members of `Topic`, whose repr would end up in messages and logs."""
    for held in TOPICS_OF_TYPE.values():
        assert all(type(topic) is str for topic in held)


def test_an_undeclared_event_is_named() -> None:
    class Stranger(Event, frozen=True, kw_only=True, tag="topics_test_stranger"):
        pass

    with pytest.raises(UndeclaredEvent, match="declared with @declare_event, got 'topics_test_str"):
        event_topics(Stranger())


def test_what_is_no_event_has_no_topics() -> None:
    with pytest.raises(InvalidArgument, match="expected an Event, got str"):
        event_topics("job_failed")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="expected an Event, got JobData"):
        event_topics(ev.JobData)  # type: ignore[arg-type]


def test_a_type_can_be_added_with_new_topics() -> None:
    class Step(Event, frozen=True, kw_only=True, tag="topics_test_step"):
        pass

    add_topics("topics_test_step", ["steps", Topic.JOBS])
    assert event_topics(Step) == {"steps", "jobs"}
    assert "steps" in known_topics()
    assert parse_topics(["steps"]) == {"steps"}
    assert "steps" in parse_topics(None)


def test_one_topic_may_be_given_as_a_string() -> None:
    add_topics("topics_test_one", "steps")
    assert topics.TOPICS_OF_TYPE["topics_test_one"] == {"steps"}


def test_a_type_is_added_once() -> None:
    add_topics("topics_test_twice", ["steps"])
    with pytest.raises(InvalidArgument, match="'topics_test_twice' is declared already"):
        add_topics("topics_test_twice", ["steps"])
    with pytest.raises(InvalidArgument, match="'heartbeat_ack' is declared already"):
        add_topics("heartbeat_ack", ["steps"])


@pytest.mark.parametrize("wrong", [[], "", [""], ["a,b"], ["a", 5], ["a", []], 5, None, {}])
def test_topics_that_cannot_be_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match="expected one or more non-empty strings without"):
        add_topics("topics_test_wrong", wrong)  # type: ignore[arg-type]
    assert "topics_test_wrong" not in topics.TOPICS_OF_TYPE


def test_no_topics_means_all() -> None:
    assert parse_topics(None) == known_topics() >= ALL_TOPICS


def test_known_topics_are_accepted_in_any_collection() -> None:
    assert parse_topics(["jobs", "jobs"]) == {"jobs"}
    assert parse_topics((Topic.JOBS, "workers")) == {"jobs", "workers"}
    assert parse_topics(topic for topic in Topic) == ALL_TOPICS
    assert all(type(topic) is str for topic in parse_topics(Topic))


def test_an_unknown_topic_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        UnknownTopic, match=r"expected some of .*jobs:status.*; got \[5\], nope"
    ) as e:
        parse_topics(["jobs", "nope", [5]])  # type: ignore[list-item]
    assert isinstance(e.value, InvalidArgument)


@pytest.mark.parametrize("wrong", ["jobs", 5, 5.0])
def test_topics_must_be_a_collection(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match="topics: expected a collection of topics, got"):
        parse_topics(wrong)  # type: ignore[arg-type]


def test_no_topic_at_all_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="expected at least one topic, got none"):
        parse_topics([])


def test_members_of_what_is_a_collection() -> None:
    assert members(("a", "b")) == ["a", "b"]
    assert members({}) == []
    assert members("ab") is None
    assert members(5) is None
