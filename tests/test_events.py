import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobqueue_broadcast import events as ev
from jobqueue_broadcast.errors import InvalidArgument
from jobqueue_broadcast.events import (
    EVENT_CLASSES,
    UNSET,
    Event,
    JobAssigned,
    JobCompleted,
    JobData,
    JobEvent,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    JobSubmitted,
    MachineStartup,
    MachineUpdate,
    SystemCounts,
    SystemStats,
    WorkerConnected,
    encode,
    event_type,
    stamped,
)
from tests import strategies as some
from tests.strict_json import parse

DATA = JobData(id="job-1", job_type="comfyui", created_at=1)


def progress(**given: Any) -> JobProgress:
    fields: dict[str, Any] = {"job_id": "job-1", "worker_id": "worker-1", "progress": 0.5} | given
    return JobProgress(**fields)


# --- frames --------------------------------------------------------------------------------------


@given(some.events())
def test_every_frame_is_accepted_by_a_strict_parser(event: Event) -> None:
    frame = parse(encode(event))
    assert next(iter(frame.items())) == ("type", event_type(event))
    for name in event.__struct_fields__:
        value = getattr(event, name)
        assert (name in frame) == (value is not UNSET)
    assert frame == {"type": event_type(event)} | msgspec.to_builtins(event)


@given(some.events())
def test_an_absent_field_is_never_null(event: Event) -> None:
    frame = parse(encode(event))
    if isinstance(event, JobCompleted):
        frame.pop("result", None)  # any JSON, null included
    nested = [frame, frame.get("job_data", {}), frame.get("host_info", {})]
    assert all(None not in part.values() for part in nested)


@pytest.mark.parametrize("cls", EVENT_CLASSES)
def test_every_frame_decodes_to_an_equal_event(cls: type[Event]) -> None:
    decode = msgspec.json.Decoder(cls).decode

    # There are 18 classes.
    @settings(max_examples=settings().max_examples // 10)
    @given(some.events_of(cls))
    def check(event: Event) -> None:
        assert decode(encode(event)) == event

    check()


def test_every_event_class_is_frozen_and_keyword_only() -> None:
    for cls in EVENT_CLASSES:
        assert cls.__struct_config__.frozen
        with pytest.raises(TypeError):
            cls(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def test_event_types_are_unique() -> None:
    assert len({event_type(cls) for cls in EVENT_CLASSES}) == len(EVENT_CLASSES) == 18


def test_the_type_of_an_event_and_of_its_class() -> None:
    assert event_type(JobProgress) == event_type(progress()) == "update_job_progress"


def test_a_tag_that_is_no_string_is_refused() -> None:
    class Numbered(Event, frozen=True, kw_only=True, tag=7):
        pass

    for numbered in (Numbered, Numbered()):
        with pytest.raises(InvalidArgument, match="a string tag, got Numbered without one"):
            event_type(numbered)


# --- arguments -----------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Name(StrEnum):
    ONE = "job-1"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: progress(job_id=""), r"`str` of length >= 1 - at `\$\.job_id`"),
        (lambda: progress(job_id="x" * 129), r"`str` of length <= 128 - at `\$\.job_id`"),
        (lambda: progress(job_id=5), r"Expected `str`, got `int` - at `\$\.job_id`"),
        (lambda: progress(job_id=None), r"Expected `str`, got `null` - at `\$\.job_id`"),
        (lambda: progress(job_id=b"abc"), r"Expected `str`, got `bytes` - at `\$\.job_id`"),
        (lambda: progress(job_id=uuid.uuid4()), r"Expected `str`, got `UUID` - at `\$\.job_id`"),
        (lambda: progress(message=uuid.uuid4()), r"Expected `str`, got `UUID` - at `\$\.message`"),
        (lambda: progress(message=None), r"Expected `str`, got `null` - at `\$\.message`"),
        (lambda: progress(message=Colour.RED), r"Expected `str`, got `Colour` - at `\$\.message`"),
        (lambda: progress(progress=1.1), r"Expected `float` <= 1.0 - at `\$\.progress`"),
        (lambda: progress(progress=-0.1), r"Expected `float` >= 0.0 - at `\$\.progress`"),
        (lambda: progress(progress=float("nan")), r"`float`, got `null` - at `\$\.progress`"),
        (lambda: progress(progress="0.5"), r"Expected `float`, got `str` - at `\$\.progress`"),
        (lambda: progress(timestamp=1.5), r"Expected `int`, got `float` - at `\$\.timestamp`"),
        (lambda: progress(timestamp=-1), r"Expected `int` >= 0 - at `\$\.timestamp`"),
        (lambda: progress(timestamp=True), r"Expected `int`, got `bool` - at `\$\.timestamp`"),
        (
            lambda: progress(timestamp=datetime.now(UTC)),
            r"Expected `int`, got `str` - at `\$\.timestamp`",
        ),
        (
            lambda: JobStatusChanged(job_id="j", old_status="odd", new_status="failed"),  # type: ignore[arg-type]
            r"Invalid enum value 'odd' - at `\$\.old_status`",
        ),
        (
            lambda: JobData(id="j", job_type="", created_at=1),
            r"Expected `str` of length >= 1 - at `\$\.job_type`",
        ),
        (
            lambda: MachineUpdate(machine_id="m", structure=[]),  # type: ignore[arg-type]
            r"Expected `object`, got `array` - at `\$\.structure`",
        ),
        (lambda: JobSubmitted(job_id="j", job_data=None), "Expected `object`, got `null`"),  # type: ignore[arg-type]
        (
            lambda: JobSubmitted(job_id="j", job_data=SystemCounts()),  # type: ignore[arg-type]
            "Object missing required field `id`",
        ),
        (
            lambda: JobSubmitted(job_id="j", job_data={"id": "j", "oops": 1, 5: 1}),  # type: ignore[arg-type]
            "JobSubmitted.job_data: expected only the keys of JobData, got 5, oops",
        ),
        (
            lambda: JobSubmitted(job_id="j", job_data={"id": "j", "job_type": "a"}),  # type: ignore[arg-type]
            "JobSubmitted.job_data: Object missing required field `created_at`",
        ),
        (
            lambda: SystemStats(stats={"total_jobs": -1}),  # type: ignore[arg-type]
            r"SystemStats.stats: Expected `int` >= 0 - at `\$\.total_jobs`",
        ),
    ],
)
def test_a_wrong_argument_is_named_with_what_was_expected(
    make: Callable[[], Event], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_the_class_is_named_too() -> None:
    with pytest.raises(InvalidArgument, match=r"^JobProgress: Expected"):
        progress(progress=2)


def endless() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


@pytest.mark.parametrize(
    "value",
    [object(), "\ud800", {"deep": {(1, 2): "a"}}, endless(), iter("ab"), 1j],
)
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    expected = "JobCompleted: expected only values that JSON can hold"
    with pytest.raises(InvalidArgument, match=expected):
        JobCompleted(job_id="job-1", worker_id="worker-1", result=value)


@pytest.mark.parametrize("raw", [b"garbage", b"1}", b"[1,", b""])
def test_raw_json_that_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidArgument, match=r"^JobCompleted: "):
        JobCompleted(job_id="job-1", worker_id="worker-1", result=msgspec.Raw(raw))


def test_text_that_equals_its_text_is_text() -> None:
    assert progress(job_id=Name.ONE) == progress()
    assert progress(progress=1) == progress(progress=1.0)


def test_nested_structs_may_be_given_as_mappings() -> None:
    as_mapping = {"id": "job-1", "job_type": "comfyui", "created_at": 1}
    for given_as in (as_mapping, MappingProxyType(as_mapping)):
        event = JobSubmitted(job_id="job-1", job_data=given_as)  # type: ignore[arg-type]
        assert event == JobSubmitted(job_id="job-1", job_data=DATA)
        assert isinstance(event.job_data, JobData)
    host = {"hostname": "h", "os": "linux", "cpu_cores": 8, "total_ram_gb": 1.5, "gpu_count": 0}
    startup = MachineStartup(machine_id="m", phase="ready", host_info=host)  # type: ignore[arg-type]
    assert startup.host_info == ev.HostInfo(**host)  # type: ignore[arg-type]
    worker = {"id": "w", "status": "idle", "connected_at": 1}
    connected = WorkerConnected(worker_id="w", machine_id="m", worker_data=worker)  # type: ignore[arg-type]
    assert connected.worker_data.capabilities == {}
    assert SystemStats(stats={}).stats == SystemCounts()  # type: ignore[arg-type]


def test_free_form_values_are_left_as_they_are() -> None:
    payload = {"prompt": "a cat", "seeds": [1, 2], "n": None, "big": 2**63}
    data = JobData(id="j", job_type="t", payload=payload, created_at=1)
    assert data.payload is payload
    assert parse(encode(JobSubmitted(job_id="j", job_data=data)))["job_data"]["payload"] == payload


# --- classes of hosts ----------------------------------------------------------------------------


def test_a_hosts_class_is_checked_by_its_own_annotations() -> None:
    class Step(JobEvent, frozen=True, kw_only=True, tag="events_test_step"):
        step: int
        note: str | None = None
        flags: list[str] = []  # noqa: RUF012 - a default of msgspec, copied for each instance

    assert Step(job_id="j", step=1).note is None
    with pytest.raises(InvalidArgument, match=r"Step: Expected `int`, got `str` - at `\$\.step`"):
        Step(job_id="j", step="one")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"Expected `str \| null`, got `int`"):
        Step(job_id="j", step=1, note=5)  # type: ignore[arg-type]


def test_a_hosts_class_may_rename_its_fields_and_omit_defaults() -> None:
    class Renamed(
        JobEvent,
        frozen=True,
        kw_only=True,
        tag="events_test_renamed",
        rename="camel",
        omit_defaults=True,
    ):
        step_name: str = "first"

    assert encode(Renamed(job_id="j")) == b'{"type":"events_test_renamed","job_id":"j"}'
    assert parse(encode(stamped(Renamed(job_id="j", step_name="second"), 5))) == {
        "type": "events_test_renamed",
        "timestamp": 5,
        "job_id": "j",
        "stepName": "second",
    }


# --- times ---------------------------------------------------------------------------------------


@given(some.events(), some.timestamps)
def test_every_time_left_at_zero_is_filled_in(event: Event, now: int) -> None:
    complete = stamped(event, now)
    assert complete.timestamp == (event.timestamp or now)
    for name in event.also_stamped:
        assert getattr(complete, name) == (getattr(event, name) or complete.timestamp)
    others = set(event.__struct_fields__) - {"timestamp", *event.also_stamped}
    assert all(getattr(complete, name) == getattr(event, name) for name in others)


@given(some.events(), some.timestamps)
def test_stamping_leaves_the_given_event_alone(event: Event, now: int) -> None:
    before = encode(event)
    complete = stamped(event, now)
    assert encode(event) == before
    assert stamped(complete, now + 1) is complete


def test_an_event_with_its_own_timestamp_passes_it_on() -> None:
    event = JobAssigned(job_id="j", worker_id="w", timestamp=7)
    assert (stamped(event, 9).timestamp, stamped(event, 9).assigned_at) == (7, 7)
    failed = stamped(JobFailed(job_id="j", error="e", failed_at=3), 9)
    assert (failed.timestamp, failed.failed_at) == (9, 3)


@given(st.sampled_from(EVENT_CLASSES))
def test_only_times_are_stamped(cls: type[Event]) -> None:
    assert set(cls.also_stamped) <= {"assigned_at", "completed_at", "failed_at"}


def test_terminal_statuses() -> None:
    assert {"completed", "failed", "cancelled", "timeout", "unworkable"} == ev.TERMINAL_STATUSES
