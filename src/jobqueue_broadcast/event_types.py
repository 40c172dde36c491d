"""How a host adds event types of its own: their class, topics, client format and conflation.

::

    @declare_event(topics=["steps"], client_format=lambda event: StepFrame(step=event.step))
    class StepSubmitted(JobEvent, frozen=True, kw_only=True, tag="step_submitted"):
        step: int
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from jobqueue_broadcast.client_format import add_client_format
from jobqueue_broadcast.commands import Reply
from jobqueue_broadcast.errors import InvalidArgument, UndeclaredEvent
from jobqueue_broadcast.events import EVENT_CLASSES, Event, JobEvent, event_type
from jobqueue_broadcast.topics import add_topics

__all__ = ["declare_event", "decode_event", "event_class"]

_E = TypeVar("_E", bound=Event)

_CLASSES: dict[str, type[Event]] = {event_type(cls): cls for cls in EVENT_CLASSES}
# An event of such a type would be taken for an answer by a monitor.
_REPLY_TYPES = frozenset(str(cls.__struct_config__.tag) for cls in Reply.__subclasses__())


class _TypeOf(Struct):
    type: str


_type_decoder = msgspec.json.Decoder(_TypeOf)
_decoders: dict[str, msgspec.json.Decoder[Event]] = {}


def declare_event(
    *, topics: Iterable[str], client_format: Callable[[Any], Struct] | None = None
) -> Callable[[type[_E]], type[_E]]:
    """Declare an event class of the host's own, as a class decorator.

    Args:
        topics: The topics monitors find it under; new ones are made by naming them.
        client_format: For a `JobEvent`, the function that makes the frame clients receive. Without
            it clients are told nothing of this event.

    Raises:
        InvalidArgument: The class is not an `Event` with a `type` tag of its own, the tag is taken
            or begins with `$`, a topic is not a non-empty string, or a client format was given for
            an event that is not about a job.
    """

    def declare(cls: type[_E]) -> type[_E]:
        _check(cls)
        if client_format is not None and not issubclass(cls, JobEvent):
            raise InvalidArgument(
                f"{cls.__name__}: expected a JobEvent, since only those are sent to clients"
            )
        if client_format is not None and not callable(client_format):
            raise InvalidArgument(
                f"{cls.__name__}: expected a function as client_format, got {client_format!r}"
            )
        name = event_type(cls)
        add_topics(name, topics)
        _CLASSES[name] = cls
        if client_format is not None and issubclass(cls, JobEvent):
            add_client_format(cls, client_format)
        return cls

    return declare


def _check(cls: object) -> None:
    """Check that frames of a host's class can be told from all others."""
    if not (isinstance(cls, type) and issubclass(cls, Event)):
        raise InvalidArgument(f"declare_event: expected a subclass of Event, got {cls!r}")
    tag = event_type(cls)
    # Where no tag is given, msgspec takes the name of the class.
    if tag == cls.__name__ or tag.startswith("$") or tag in _REPLY_TYPES:
        raise InvalidArgument(
            f"{cls.__name__}: expected a tag of its own that does not begin with `$`, such as "
            f'class {cls.__name__}(JobEvent, frozen=True, kw_only=True, tag="step_submitted"), '
            f"got {tag!r}"
        )
    if cls.__struct_config__.tag_field != "type" or cls.__struct_config__.array_like:
        raise InvalidArgument(f"{cls.__name__}: expected a JSON object with its tag in `type`")
    if "position" in cls.__struct_encode_fields__:
        raise InvalidArgument(
            f"{cls.__name__}: expected no field `position`, which connections may opt in to"
        )
    # The states of jobs are told by the built-in classes, and of which events clients hear too.
    if taken := [base.__name__ for base in cls.__mro__[1:] if base in _CLASSES.values()]:
        raise InvalidArgument(
            f"{cls.__name__}: expected a subclass of Event, JobEvent, WorkerEvent or MachineEvent, "
            f"got one of {taken[0]}, which is an event type itself"
        )


def event_class(type_name: str) -> type[Event]:
    """Return the class of an event type.

    Raises:
        UndeclaredEvent: No class has this type.
    """
    try:
        return _CLASSES[type_name]
    except KeyError:
        raise UndeclaredEvent(
            f"expected a built-in event type or one declared with @declare_event, got {type_name!r}"
        ) from None


def decode_event(frame: bytes) -> Event:
    """Return the event whose original-format frame this is.

    Raises:
        UndeclaredEvent: The frame's type is not known here.
        msgspec.MsgspecError: The bytes are not a valid frame of that type.
    """
    try:
        name = _type_decoder.decode(frame).type
        decoder = _decoders.get(name)
        if decoder is None:
            decoder = _decoders[name] = msgspec.json.Decoder(event_class(name))
        return decoder.decode(frame)
    except UnicodeError:
        raise msgspec.DecodeError("expected UTF-8") from None
