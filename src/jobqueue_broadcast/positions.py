"""Where an event stands in the order of all: `<epoch>:<sequence>` (wire protocol, section 6)."""

from __future__ import annotations

import re

from msgspec import Struct

from jobqueue_broadcast.errors import InvalidArgument

__all__ = ["Position", "with_position"]

# Sequences of a distributed backplane are wider than 64 bits; 40 digits are beyond any of them.
_POSITION = re.compile(r"([A-Za-z0-9_-]{1,64}):([0-9]{1,40})(?:\.([0-9]{1,18}))?")


class Position(Struct, frozen=True, order=True):
    """A place in one unbroken sequence of events.

    Attributes:
        epoch: Names the sequence; another epoch says nothing about this one.
        sequence: Grows with each event.
        state: Grows with each state a client is sent between two events (section 7), so that a
            client that stopped in the middle of one can be told apart from one that has it all.
    """

    epoch: str
    sequence: int
    state: int = 0

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position a peer gave back.

        Raises:
            InvalidArgument: It is not one this library gave out.
        """
        matched = _POSITION.fullmatch(text)
        if matched is None:
            raise InvalidArgument("position: expected <epoch>:<sequence>")
        return cls(matched[1], int(matched[2]), int(matched[3] or 0))

    def __str__(self) -> str:
        state = f".{self.state}" if self.state else ""
        return f"{self.epoch}:{self.sequence}{state}"


def with_position(payload: bytes, position: Position) -> bytes:
    """Return a frame's JSON with `position` as its last field."""
    state = b".%d" % position.state if position.state else b""
    epoch = position.epoch.encode()
    return b'%b,"position":"%b:%d%b"}' % (payload[:-1], epoch, position.sequence, state)
