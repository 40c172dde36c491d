"""How a host adds event types of its own: their class, topics, client format and conflation.

::

    @declare_event(topics=["steps"], client_format=lambda event: StepFrame(job_id=event.job_id, ...))
    class StepSubmitted(JobEvent, frozen=True, kw_only=True, tag="step_submitted"):
        step: int
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from jobqueue_broadcast.client_format import add_client_format
from jobqueue_broadcast.errors import InvalidArgument, UndeclaredEvent
from jobqueue_broadcast.events import EVENT_CLASSES, Event, JobEvent, event_type
from jobqueue_broadcast.topics import add_topics

__all__ = ["declare_event", "decode_event", "event_class"]

_E = TypeVar("_E", bound=Event)

_CLASSES: dict[str, type[Event]] = {event_type(cls): cls for cls in EVENT_CLASSES}


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
        InvalidArgument: The class is not an `Event` with a `type` tag of its own, the tag is taken,
            a topic is not a non-empty string, or a client format was given for an event that is
            not about a job.
    """

    def declare(cls: type[_E]) -> type[_E]:
        if not (isinstance(cls, type) and issubclass(cls, Event)):
            raise InvalidArgument(f"declare_event: expected a subclass of Event, got {cls!r}")
        if client_format is not None and not issubclass(cls, JobEvent):
            raise InvalidArgument(
                f"{cls.__name__}: expected a JobEvent, since only those are sent to clients"
            )
        name = event_type(cls)
        add_topics(name, topics)
        _CLASSES[name] = cls
        if client_format is not None and issubclass(cls, JobEvent):
            add_client_format(cls, client_format)
        return cls

    return declare


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
    name = _type_decoder.decode(frame).type
    decoder = _decoders.get(name)
    if decoder is None:
        decoder = _decoders[name] = msgspec.json.Decoder(event_class(name))
    return decoder.decode(frame)
