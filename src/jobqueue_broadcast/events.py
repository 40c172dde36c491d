"""What happened: one struct per event type, whose JSON encoding is its original-format frame.

Every event is frozen, keyword-only and tagged by `type`. Arguments are checked when the event is
made, so that a mistake is reported where it was made. A time left at its default (0) means "now":
`EventBroadcaster.broadcast` fills it in from its clock. Optional fields are `UNSET`, and left out
of the frame. The shapes are the wire protocol's section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import cache, reduce
from operator import attrgetter
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field, structs

from jobqueue_broadcast.errors import InvalidArgument

__all__ = [
    "EVENT_CLASSES",
    "TERMINAL_STATUSES",
    "UNSET",
    "ConnectorStatusChanged",
    "Event",
    "HostInfo",
    "JobAssigned",
    "JobCompleted",
    "JobData",
    "JobEvent",
    "JobFailed",
    "JobProgress",
    "JobStatus",
    "JobStatusChanged",
    "JobSubmitted",
    "MachineDisconnected",
    "MachineEvent",
    "MachineShutdown",
    "MachineStartup",
    "MachineStartupComplete",
    "MachineStartupStep",
    "MachineStatusChange",
    "MachineUpdate",
    "SystemCounts",
    "SystemStats",
    "UnsetType",
    "WorkerConnected",
    "WorkerData",
    "WorkerDisconnected",
    "WorkerEvent",
    "WorkerStatusChanged",
    "encode",
    "event_type",
    "stamped",
]

# 128 characters is the wire protocol's limit; even fully escaped, an id fits an answer of 1 KiB.
Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
Name: TypeAlias = Annotated[str, Meta(min_length=1)]
Milliseconds: TypeAlias = Annotated[int, Meta(ge=0)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Fraction: TypeAlias = Annotated[float, Meta(ge=0.0, le=1.0)]

JobStatus: TypeAlias = Literal[
    "pending",
    "queued",
    "assigned",
    "accepted",
    "in_progress",
    "completed",
    "failed",
    "cancelled",
    "timeout",
    "unworkable",
]
TERMINAL_STATUSES: frozenset[str] = frozenset(
    {"completed", "failed", "cancelled", "timeout", "unworkable"}
)


_SCALARS = (str, int, float, bool, type(None), UnsetType)


class _Checked(Struct, frozen=True, kw_only=True, gc=False):
    """A struct whose arguments are checked against its own annotations when it is made.

    Frozen, and holding only what JSON can hold, it is never part of a cycle: the garbage collector
    need not look at it, nor at the ten thousand that a history retains.
    """

    def __post_init__(self) -> None:
        _checker(type(self))(self)


class JobData(_Checked, frozen=True, kw_only=True):
    """The job as its submitter described it, inside `JobSubmitted`."""

    id: Id
    job_type: Name
    status: Literal["pending"] = "pending"
    priority: int = 0
    requirements: dict[str, Any] | UnsetType = UNSET
    payload: dict[str, Any] | UnsetType = UNSET
    workflow_id: str | UnsetType = UNSET
    workflow_priority: int | UnsetType = UNSET
    workflow_datetime: Milliseconds | UnsetType = UNSET
    current_step: Count | UnsetType = UNSET
    total_steps: Count | UnsetType = UNSET
    customer_id: str | UnsetType = UNSET
    created_at: Milliseconds


class WorkerData(_Checked, frozen=True, kw_only=True):
    """A worker as it introduced itself, inside `WorkerConnected`."""

    id: Id
    status: Name
    capabilities: dict[str, Any] = field(default_factory=dict[str, Any])
    connected_at: Milliseconds
    jobs_completed: Count = 0
    jobs_failed: Count = 0


class HostInfo(_Checked, frozen=True, kw_only=True):
    """The hardware of a machine, inside `MachineStartup`."""

    hostname: Name
    ip_address: str | UnsetType = UNSET
    os: str
    cpu_cores: Count
    total_ram_gb: Annotated[float, Meta(ge=0.0)]
    gpu_count: Count
    gpu_models: list[str] | UnsetType = UNSET


class SystemCounts(_Checked, frozen=True, kw_only=True):
    """System-wide counts, inside `SystemStats`."""

    total_workers: Count = 0
    active_workers: Count = 0
    total_jobs: Count = 0
    pending_jobs: Count = 0
    active_jobs: Count = 0
    completed_jobs: Count = 0
    failed_jobs: Count = 0


class Event(_Checked, frozen=True, kw_only=True, tag_field="type"):
    """Something that happened; the base of every event class.

    Args:
        timestamp: Unix time in milliseconds; 0, the default, means the time of `broadcast`.

    Raises:
        InvalidArgument: A field has a value of the wrong type or out of range.
    """

    # Other times of the same moment, filled in like `timestamp` when left at 0.
    also_stamped: ClassVar[tuple[str, ...]] = ()
    # Read in place of `isinstance`, which takes ten times as long with the metaclass of structs.
    about_job: ClassVar[bool] = False
    is_outcome: ClassVar[bool] = False

    timestamp: Milliseconds = 0


class JobEvent(Event, frozen=True, kw_only=True):
    """Something that happened to one job; clients subscribed to `job_id` may hear of it."""

    about_job: ClassVar[bool] = True

    job_id: Id


class WorkerEvent(Event, frozen=True, kw_only=True):
    """Something that happened to one worker."""

    worker_id: Id


class MachineEvent(Event, frozen=True, kw_only=True):
    """Something that happened to one machine."""

    machine_id: Id


class JobSubmitted(JobEvent, frozen=True, kw_only=True, tag="job_submitted"):
    """A job entered the queue. `job_data` may be given as a mapping with the same keys."""

    job_data: JobData


class JobAssigned(JobEvent, frozen=True, kw_only=True, tag="job_assigned"):
    """A job was given to a worker."""

    also_stamped: ClassVar[tuple[str, ...]] = ("assigned_at",)

    worker_id: Id
    old_status: Literal["pending"] = "pending"
    new_status: Literal["assigned"] = "assigned"
    assigned_at: Milliseconds = 0


class JobStatusChanged(JobEvent, frozen=True, kw_only=True, tag="job_status_changed"):
    """A job moved from one status to another."""

    old_status: JobStatus
    new_status: JobStatus
    worker_id: Id | UnsetType = UNSET


class JobProgress(JobEvent, frozen=True, kw_only=True, tag="update_job_progress"):
    """A worker reports how far a job is: `progress` from 0.0 to 1.0."""

    worker_id: Id
    progress: Fraction
    status: str | UnsetType = UNSET
    message: str | UnsetType = UNSET


class JobCompleted(JobEvent, frozen=True, kw_only=True, tag="complete_job"):
    """A job ended well. `result` is any value that can be written as JSON."""

    also_stamped: ClassVar[tuple[str, ...]] = ("completed_at",)
    is_outcome: ClassVar[bool] = True

    worker_id: Id
    result: Any = UNSET
    completed_at: Milliseconds = 0


class JobFailed(JobEvent, frozen=True, kw_only=True, tag="job_failed"):
    """A job ended badly, for the reason in `error`."""

    also_stamped: ClassVar[tuple[str, ...]] = ("failed_at",)
    is_outcome: ClassVar[bool] = True

    error: str
    worker_id: Id | UnsetType = UNSET
    failed_at: Milliseconds = 0


class WorkerConnected(WorkerEvent, frozen=True, kw_only=True, tag="worker_connected"):
    """A worker came up. `worker_data` may be given as a mapping with the same keys."""

    machine_id: Id
    worker_data: WorkerData


class WorkerDisconnected(WorkerEvent, frozen=True, kw_only=True, tag="worker_disconnected"):
    """A worker went away."""

    machine_id: Id


class WorkerStatusChanged(WorkerEvent, frozen=True, kw_only=True, tag="worker_status_changed"):
    """A worker moved from one status to another."""

    old_status: Name
    new_status: Name
    current_job_id: Id | UnsetType = UNSET


class ConnectorStatusChanged(
    WorkerEvent, frozen=True, kw_only=True, tag="connector_status_changed"
):
    """A worker's connection to a service it drives changed state."""

    connector_id: Id
    service_type: Name
    status: Literal["active", "inactive", "error"]
    service_info: dict[str, Any] | UnsetType = UNSET


class MachineStartup(MachineEvent, frozen=True, kw_only=True, tag="machine_startup"):
    """A machine began, or went on, starting up."""

    phase: Literal["starting", "configuring", "ready"]
    host_info: HostInfo | UnsetType = UNSET


class MachineStartupStep(MachineEvent, frozen=True, kw_only=True, tag="machine_startup_step"):
    """One step of a machine's start-up is done, `elapsed_ms` after its beginning."""

    step_name: Name
    step_phase: Literal["shared_setup", "core_infrastructure", "ai_services", "supporting_services"]
    step_data: dict[str, Any] | UnsetType = UNSET
    elapsed_ms: Count


class MachineStartupComplete(
    MachineEvent, frozen=True, kw_only=True, tag="machine_startup_complete"
):
    """A machine is up."""

    total_startup_time_ms: Count
    worker_count: Count
    services_started: list[str] = field(default_factory=list[str])


class MachineShutdown(MachineEvent, frozen=True, kw_only=True, tag="machine_shutdown"):
    """A machine is going down on purpose."""

    reason: str | UnsetType = UNSET


class MachineDisconnected(MachineEvent, frozen=True, kw_only=True, tag="machine_disconnected"):
    """A machine was lost."""

    reason: str | UnsetType = UNSET


class MachineUpdate(MachineEvent, frozen=True, kw_only=True, tag="machine_update"):
    """A machine's structure and figures, as of now."""

    structure: dict[str, Any] = field(default_factory=dict[str, Any])
    status_data: dict[str, Any] = field(default_factory=dict[str, Any])


class MachineStatusChange(MachineEvent, frozen=True, kw_only=True, tag="machine_status_change"):
    """A machine changed state; the same shape as `MachineUpdate`."""

    structure: dict[str, Any] = field(default_factory=dict[str, Any])
    status_data: dict[str, Any] = field(default_factory=dict[str, Any])


class SystemStats(Event, frozen=True, kw_only=True, tag="system_stats"):
    """System-wide counts. `stats` may be given as a mapping with the same keys."""

    stats: SystemCounts


EVENT_CLASSES: tuple[type[Event], ...] = (
    JobSubmitted,
    JobAssigned,
    JobStatusChanged,
    JobProgress,
    JobCompleted,
    JobFailed,
    WorkerConnected,
    WorkerDisconnected,
    WorkerStatusChanged,
    ConnectorStatusChanged,
    MachineStartup,
    MachineStartupStep,
    MachineStartupComplete,
    MachineShutdown,
    MachineDisconnected,
    MachineUpdate,
    MachineStatusChange,
    SystemStats,
)


def event_type(event: Event | type[Event]) -> str:
    """Return the `type` of an event's frame."""
    tag = event.__struct_config__.tag
    if not isinstance(tag, str):
        name = (event if isinstance(event, type) else type(event)).__name__
        raise InvalidArgument(f"expected an event class with a string tag, got {name} without one")
    return tag


_E = TypeVar("_E", bound=Event)

_encoder = msgspec.json.Encoder()


def encode(frame: Struct) -> bytes:
    """Return the UTF-8 JSON of an event or of any other frame.

    Raises:
        InvalidArgument: A value cannot be written as JSON (an object of the host's own, a lone
            surrogate, a list that holds itself).
    """
    try:
        return _encoder.encode(frame)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument(
            f"{type(frame).__name__}: expected only values that JSON can hold, {error}"
        ) from error


_set = structs.force_setattr


def stamped(event: _E, now: int) -> _E:
    """Return the event with every time that was left at 0 filled in.

    Args:
        event: Any event.
        now: Unix time in milliseconds, for an event without a timestamp.
    """
    moment = event.timestamp or now
    missing = [name for name in event.also_stamped if not getattr(event, name)]
    if event.timestamp and not missing:
        return event
    # `structs.replace` would check the whole event again.
    complete = copy(event)
    _set(complete, "timestamp", moment)
    for name in missing:
        _set(complete, name, moment)
    return complete


@cache
def _checker(cls: type[Struct]) -> Callable[[Any], None]:
    """Return the function that checks an instance of `cls` against its annotations.

    msgspec checks types when it decodes, not when a struct is made in Python; so a struct is right
    when its encoding decodes into a twin with the same fields and equal scalars. (Unequal is what
    is written as text without being text, a UUID say: a job id that equals no client's job id.)
    That costs 0.8 µs; converting the instance itself, 1.1 µs. Free-form values are left undecoded
    in the twin, as `Raw`.
    """
    types = get_type_hints(cls, include_extras=True)
    fields = structs.fields(cls)
    nested = {info.name: kind for info in fields if (kind := _struct_in(types[info.name]))}
    scalars = [info.name for info in fields if _is_scalar(types[info.name])]
    twin = msgspec.defstruct(
        cls.__name__,
        [
            (info.name, _without_free_form(types[info.name]))
            if info.required
            else (info.name, _without_free_form(types[info.name]), _default(info))
            for info in fields
        ],
        kw_only=True,
        rename={info.name: info.encode_name for info in fields},
    )
    decode = msgspec.json.Decoder(twin).decode
    # Where it will do, `astuple` takes a third of the time, and most events are scalars only.
    scalars_of: Callable[[Any], object] = (
        structs.astuple if len(scalars) == len(fields) else attrgetter(*scalars)
    )

    def check(instance: Any) -> None:
        for name, kind in nested.items():
            if isinstance(getattr(instance, name), Mapping):
                structs.force_setattr(instance, name, _from_mapping(instance, name, kind))
        try:
            read = decode(encode(instance))
        except msgspec.MsgspecError as error:
            raise InvalidArgument(f"{cls.__name__}: {error}") from error
        if scalars_of(read) != scalars_of(instance):
            raise InvalidArgument(f"{cls.__name__}: {_difference(read, instance, scalars)}")

    return check


def _default(info: structs.FieldInfo) -> Any:
    """Return what a twin holds for a field that is not in the frame."""
    return UNSET if info.default is msgspec.NODEFAULT else info.default


def _difference(read: Any, instance: Any, names: list[str]) -> str:
    """Say, in msgspec's manner, which scalar was given as something that only looks like it."""
    given = {name: (getattr(read, name), getattr(instance, name)) for name in names}
    name = next(name for name, (expected, value) in given.items() if expected != value)
    expected, value = (type(side).__name__ for side in given[name])
    return f"Expected `{expected}`, got `{value}` - at `$.{name}`"


def _options(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _is_scalar(annotation: Any) -> bool:
    """Tell whether a field holds text, a number, a truth value or nothing."""
    return all(
        get_origin(option) is Literal
        or (get_args(option)[0] if get_origin(option) is Annotated else option) in _SCALARS
        for option in _options(annotation)
    )


def _without_free_form(annotation: Any) -> Any:
    """Replace `Any`, however large its value, by `Raw`, which is skipped and not built."""
    if annotation is Any:
        return msgspec.Raw
    options: list[Any] = [
        dict[str, msgspec.Raw] if option == dict[str, Any] else option
        for option in _options(annotation)
    ]
    return reduce(lambda union, option: union | option, options)


def _struct_in(annotation: Any) -> type[Struct] | None:
    """Return the struct class an annotation names, if it names one."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, Struct):
            return option
    return None


def _from_mapping(instance: Struct, name: str, kind: type[Struct]) -> Struct:
    """Make the struct of a nested field from the mapping a host gave for it."""
    where = f"{type(instance).__name__}.{name}"
    value: Mapping[Any, Any] = getattr(instance, name)
    known = {info.name for info in structs.fields(kind)}
    if unknown := sorted(str(key) for key in value if key not in known):
        raise InvalidArgument(
            f"{where}: expected only the keys of {kind.__name__}, got {', '.join(unknown)}"
        )
    try:
        return msgspec.convert(dict(value), kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{where}: {error}") from error
