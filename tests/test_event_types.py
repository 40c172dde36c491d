"""Events of hosts, from their declaration to the wire."""

from typing import Any

import msgspec
import pytest
from hypothesis import given

from jobqueue_broadcast import EventBroadcaster, client_format, event_types, topics
from jobqueue_broadcast.errors import InvalidArgument, UndeclaredEvent
from jobqueue_broadcast.event_types import declare_event, decode_event, event_class
from jobqueue_broadcast.events import (
    EVENT_CLASSES,
    Event,
    JobEvent,
    JobFailed,
    JobProgress,
    MachineEvent,
    encode,
    event_type,
)
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests import strategies as some


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that a test declares are gone after it."""
    monkeypatch.setattr(topics, "TOPICS_OF_TYPE", dict(topics.TOPICS_OF_TYPE))
    monkeypatch.setattr(client_format, "_FORMATS", dict(client_format._FORMATS))
    monkeypatch.setattr(event_types, "_CLASSES", dict(event_types._CLASSES))
    monkeypatch.setattr(event_types, "_decoders", dict(event_types._decoders))


class StepFrame(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="step"):
    timestamp: int
    job_id: str
    step: int


def step_class() -> Any:
    class Step(JobEvent, frozen=True, kw_only=True, tag="types_test_step"):
        step: int

    return Step


def step_frame(event: Any) -> StepFrame:
    return StepFrame(timestamp=event.timestamp, job_id=event.job_id, step=event.step)


# --- from declaration to wire --------------------------------------------------------------------


def test_a_declared_event_reaches_monitors_and_clients() -> None:
    step: Any = declare_event(topics=["types_test_steps"], client_format=step_frame)(step_class())
    broadcaster = EventBroadcaster(clock=ManualClock(1_000))
    held, other, client = RecordingConnection(), RecordingConnection(), RecordingConnection()
    broadcaster.add_monitor("m-1", held, topics=["types_test_steps"])
    broadcaster.add_monitor("m-2", other, topics=["jobs"])
    broadcaster.add_client("c-1", client)
    broadcaster.subscribe_client_to_job("c-1", "job-1")
    for connection in (held, other, client):
        connection.take()
    broadcaster.broadcast(step(job_id="job-1", step=2))
    original = {"type": "types_test_step", "timestamp": 1_000, "job_id": "job-1", "step": 2}
    assert held.take() == [original]
    assert other.take() == []
    assert client.take() == [{"type": "step", "timestamp": 1_000, "job_id": "job-1", "step": 2}]


def test_without_a_client_format_clients_are_told_nothing() -> None:
    step: Any = declare_event(topics="types_test_steps")(step_class())
    broadcaster = EventBroadcaster(clock=ManualClock())
    client = RecordingConnection()
    broadcaster.add_client("c-1", client)
    broadcaster.subscribe_client_to_job("c-1", "job-1")
    client.take()
    broadcaster.broadcast(step(job_id="job-1", step=2))
    assert client.take() == []


def test_a_declared_event_is_decoded() -> None:
    step: Any = declare_event(topics=["types_test_steps"])(step_class())
    assert event_class("types_test_step") == step
    event: Event = step(job_id="job-1", step=2, timestamp=5)
    assert decode_event(encode(event)) == event
    assert decode_event(encode(event)) == event  # by the decoder made before


def test_the_decorator_returns_the_class() -> None:
    step = step_class()
    assert declare_event(topics=["types_test_steps"])(step) is step


# --- refusals ------------------------------------------------------------------------------------


def test_a_tag_is_declared_once() -> None:
    declare_event(topics=["types_test_steps"])(step_class())
    with pytest.raises(InvalidArgument, match="'types_test_step' is declared already"):
        declare_event(topics=["types_test_steps"])(step_class())


@pytest.mark.parametrize("tag", [event_type(cls) for cls in EVENT_CLASSES] + ["heartbeat_ack"])
def test_a_built_in_tag_is_taken(tag: str) -> None:
    class Impostor(Event, frozen=True, kw_only=True, tag=tag):
        pass

    with pytest.raises(InvalidArgument, match=r"is declared already|expected a tag of its own"):
        declare_event(topics=["jobs"])(Impostor)


@pytest.mark.parametrize(
    "tag",
    [
        None,  # msgspec then takes the name of the class
        "$job_accepted",
        "$",
        "connected",
        "connection_established",
        "error",
        "subscribed",
        "unsubscribed",
        "full_state_snapshot",
        "resync_response",
        "resync_required",
        "job_status",
        "job_cancelled",
    ],
)
def test_a_tag_must_be_the_events_own(tag: str | None) -> None:
    class Odd(Event, frozen=True, kw_only=True, tag=tag):
        pass

    with pytest.raises(InvalidArgument, match=r"Odd: expected a tag of its own .* got '"):
        declare_event(topics=["jobs"])(Odd)


def test_a_tag_must_be_a_string_in_type() -> None:
    class Numbered(Event, frozen=True, kw_only=True, tag=7):
        pass

    class Elsewhere(Event, frozen=True, kw_only=True, tag="types_test_elsewhere", tag_field="kind"):
        pass

    class Array(Event, frozen=True, kw_only=True, tag="types_test_array", array_like=True):
        pass

    with pytest.raises(InvalidArgument, match="string tag, got Numbered"):
        declare_event(topics=["jobs"])(Numbered)
    for cls in (Elsewhere, Array):
        with pytest.raises(InvalidArgument, match="expected a JSON object with its tag in `type`"):
            declare_event(topics=["jobs"])(cls)


def test_no_field_may_be_called_position() -> None:
    class Placed(
        Event, frozen=True, kw_only=True, tag="types_test_placed", rename={"place": "position"}
    ):
        place: str

    with pytest.raises(InvalidArgument, match="Placed: expected no field `position`"):
        declare_event(topics=["jobs"])(Placed)


def test_an_event_type_is_not_derived_from_another() -> None:
    """Or it would change the states of jobs, while clients are told something else, or nothing."""

    class Detailed(JobProgress, frozen=True, kw_only=True, tag="types_test_detailed"):
        pass

    with pytest.raises(InvalidArgument, match="got one of JobProgress, which is an event type"):
        declare_event(topics=["jobs"])(Detailed)


@pytest.mark.parametrize(
    "wrong", [int, msgspec.Struct, "Step", None, JobFailed(job_id="j", error="e")]
)
def test_only_event_classes_are_declared(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="declare_event: expected a subclass of Event, got"):
        declare_event(topics=["jobs"])(wrong)


def test_only_job_events_have_a_client_format() -> None:
    class Reboot(MachineEvent, frozen=True, kw_only=True, tag="types_test_reboot"):
        pass

    with pytest.raises(InvalidArgument, match="Reboot: expected a JobEvent, since only those are"):
        declare_event(topics=["machines"], client_format=step_frame)(Reboot)
    assert declare_event(topics=["machines"])(Reboot) is Reboot


def test_a_client_format_is_a_function() -> None:
    with pytest.raises(InvalidArgument, match=r"expected a function as client_format, got \{\}"):
        declare_event(topics=["jobs"], client_format={})(step_class())  # type: ignore[arg-type]


def test_a_client_format_that_returns_no_struct_is_named() -> None:
    make: Any = lambda _: {"a": 1}  # noqa: E731 - of a type that the decorator does not take
    step: Any = declare_event(topics=["jobs"], client_format=make)(step_class())
    with pytest.raises(InvalidArgument, match=r"client_format of Step: expected .* got dict"):
        client_format.client_frame(step(job_id="job-1", step=1))


def test_wrong_topics_declare_nothing() -> None:
    with pytest.raises(InvalidArgument, match="expected one or more non-empty strings"):
        declare_event(topics=[])(step_class())
    with pytest.raises(UndeclaredEvent):
        event_class("types_test_step")


# --- decoding ------------------------------------------------------------------------------------


@given(some.events())
def test_every_frame_decodes_to_an_equal_event(event: Event) -> None:
    assert decode_event(encode(event)) == event


@pytest.mark.parametrize("cls", EVENT_CLASSES)
def test_built_in_classes_are_found_by_type(cls: type[Event]) -> None:
    assert event_class(event_type(cls)) is cls


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(UndeclaredEvent, match="declared with @declare_event, got 'nope'"):
        decode_event(b'{"type":"nope"}')


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"[]",
        b"{}",
        b'{"type":5}',
        b'{"type":"job_failed"}',
        b'{"type":"job_failed","job_id":"","error":"e"}',
        b'{"type":"job_failed","job_id":"\xff","error":"e"}',
        b'{"type":"\xff"}',
        b'{"type":"update_job_progress","job_id":"j","worker_id":"w","progress":1.5}',
        b'{"type":"update_job_progress","job_id":"j","worker_id":"w","progress":NaN}',
    ],
)
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_event(frame)
