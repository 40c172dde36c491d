"""Which topics an event belongs to: one table by event type (wire protocol, section 2)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import cache
from typing import Any

from jobqueue_broadcast.errors import InvalidArgument, UndeclaredEvent, UnknownTopic
from jobqueue_broadcast.events import Event, event_type

__all__ = [
    "ALL_TOPICS",
    "TOPICS_OF_TYPE",
    "Topic",
    "add_topics",
    "event_topics",
    "known_topics",
    "members",
    "parse_topics",
]


class Topic(StrEnum):
    """The topics of the built-in event types."""

    WORKERS = "workers"
    MACHINES = "machines"
    JOBS = "jobs"
    JOBS_STATUS = "jobs:status"
    JOBS_PROGRESS = "jobs:progress"
    SYSTEM_STATS = "system_stats"
    HEARTBEAT = "heartbeat"


ALL_TOPICS: frozenset[str] = frozenset(topic.value for topic in Topic)
"""The built-in topics. A monitor that does not narrow holds these and every declared one."""

_WORKERS = frozenset({Topic.WORKERS.value})
_MACHINES = frozenset({Topic.MACHINES.value})
_JOB_STATUS = frozenset({Topic.JOBS.value, Topic.JOBS_STATUS.value})
_JOB_PROGRESS = frozenset({Topic.JOBS.value, Topic.JOBS_PROGRESS.value})

TOPICS_OF_TYPE: dict[str, frozenset[str]] = {
    "worker_connected": _WORKERS,
    "worker_disconnected": _WORKERS,
    "worker_status_changed": _WORKERS,
    "connector_status_changed": _WORKERS,
    "machine_startup": _MACHINES,
    "machine_startup_step": _MACHINES,
    "machine_startup_complete": _MACHINES,
    "machine_shutdown": _MACHINES,
    "machine_update": _MACHINES,
    "machine_status_change": _MACHINES,
    "machine_disconnected": _MACHINES,
    "job_submitted": _JOB_STATUS,
    "job_assigned": _JOB_STATUS,
    "job_status_changed": _JOB_STATUS,
    "complete_job": _JOB_STATUS,
    "job_failed": _JOB_STATUS,
    "update_job_progress": _JOB_PROGRESS,
    "system_stats": frozenset({Topic.SYSTEM_STATS.value}),
    "heartbeat_ack": frozenset({Topic.HEARTBEAT.value}),
}


def event_topics(event: Event | type[Event]) -> frozenset[str]:
    """Return the topics an event belongs to.

    Raises:
        InvalidArgument: It is no event.
        UndeclaredEvent: The event's class is the host's own and was never declared.
    """
    return _topics_of(event if isinstance(event, type) else type(event))


@cache
def _topics_of(cls: type[Any]) -> frozenset[str]:
    """Look a class up once: `isinstance` with the metaclass of structs takes 0.2 µs each time."""
    if not issubclass(cls, Event):
        raise InvalidArgument(f"expected an Event, got {cls.__name__}")
    try:
        return TOPICS_OF_TYPE[event_type(cls)]
    except KeyError:
        raise UndeclaredEvent(
            f"expected a built-in event or one declared with @declare_event, "
            f"got {event_type(cls)!r}"
        ) from None


def known_topics() -> frozenset[str]:
    """Return every topic some event type belongs to, the host's own included."""
    return frozenset[str]().union(*TOPICS_OF_TYPE.values())


def members(value: Any) -> list[Any] | None:
    """Return what a collection holds; `None` for what is none, a single string included."""
    if isinstance(value, str):
        return None
    try:
        return list(value)
    except TypeError:
        return None


def add_topics(type_name: str, topics: Iterable[str]) -> None:
    """Enter a host's event type into the table.

    Raises:
        InvalidArgument: The type is already there, or the topics are not non-empty strings without
            commas (which separate topics in the `topics` query parameter).
    """
    if type_name in TOPICS_OF_TYPE:
        raise InvalidArgument(f"expected a new event type, {type_name!r} is declared already")
    names = [topics] if isinstance(topics, str) else members(topics)
    if not names or not all(isinstance(name, str) and name and "," not in name for name in names):
        raise InvalidArgument(
            f"topics of {type_name!r}: expected one or more non-empty strings without commas, "
            f"got {topics!r}"
        )
    TOPICS_OF_TYPE[type_name] = frozenset(str(name) for name in names)


def parse_topics(topics: Iterable[str] | None) -> frozenset[str]:
    """Return the given topics as a set, or every known topic for `None`.

    Raises:
        UnknownTopic: One of them belongs to no event type.
        InvalidArgument: Not a collection was given, but a single string, say; or no topic.
    """
    known = known_topics()
    if topics is None:
        return known
    given = members(topics)
    if given is None:
        raise InvalidArgument(f"topics: expected a collection of topics, got {topics!r}")
    names = frozenset(str(topic) for topic in given)
    if not names:
        raise InvalidArgument("topics: expected at least one topic, got none")
    if unknown := sorted(names - known):
        raise UnknownTopic(
            f"topics: expected some of {', '.join(sorted(known))}; got {', '.join(unknown)}"
        )
    return names
