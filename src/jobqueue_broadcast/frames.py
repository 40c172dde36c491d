"""What travels outwards: a frame, the wire that packs it, and the connection that writes it.

A `Frame` is one JSON object. A `Wire` turns frames into what a kind of connection writes (framed,
perhaps compressed); connections with the same parameters share one wire, so that each frame is
packed once for all of them. A `Connection` is what an adapter implements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from jobqueue_broadcast.events import Event, encode
from jobqueue_broadcast.positions import Position, with_position

__all__ = ["Connection", "Frame", "TextWire", "Wire", "reply_frame"]


class Wire(Protocol):
    """How frames become what a connection writes; compared by identity."""

    def pack(self, payload: bytes) -> Any:
        """Make one frame's payload (UTF-8 JSON) ready to be written."""
        ...

    def join(self, packed: Sequence[Any]) -> Any:
        """Make one batch of several packed frames, to be written at once."""
        ...


class Connection(Protocol):
    """One peer, as the core sees it; an adapter implements this, and nothing else is needed.

    No method may block, wait or raise: a connection that is broken or closed does nothing.
    An adapter tells the core when writing should stop and may go on, through the
    `Subscriber.pause` and `Subscriber.resume` of what `EventBroadcaster.add_monitor` and
    `add_client` return, and that the peer is gone, through `remove_monitor` or `remove_client`.
    """

    @property
    def wire(self) -> Wire:
        """The wire this connection shares with others like it."""
        ...

    def write(self, batch: Any, /) -> None:
        """Write a batch made by `wire.join`, now; what cannot be sent yet is buffered."""
        ...

    def backlog(self) -> int:
        """Return how many bytes were taken by `write` and not yet by the operating system."""
        ...

    def close(self, code: int, reason: str, /) -> None:
        """Begin to close: whatever was written goes out first; return at once."""
        ...

    def abort(self) -> None:
        """Drop the peer now, without a closing handshake."""
        ...


class TextWire:
    """The wire of connections that send a message at a time: a batch is a tuple of payloads."""

    def pack(self, payload: bytes) -> bytes:
        """Return the payload as it is."""
        return payload

    def join(self, packed: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the payloads as a tuple."""
        return tuple(packed)


class Frame(Struct, gc=False, eq=False):
    """One JSON object on its way out, packed at most once per wire.

    Args:
        payload: UTF-8 JSON.
        event: The event it tells of, from which an outbox knows what it replaces; `None` for a
            reply, which nothing replaces.
    """

    payload: bytes
    event: Event | None = None
    # `Any`, because structs look their annotations up, and a Protocol is no type to them.
    _wire: Any = None
    _packed: Any = None
    # Few hosts have connections of two kinds; the dictionary is made for those alone.
    _more: dict[Any, Any] | None = None

    def packed(self, wire: Wire) -> Any:
        """Return the frame packed for a wire."""
        if self._wire is wire:
            return self._packed
        if self._wire is None:
            self._wire = wire
            self._packed = wire.pack(self.payload)
            return self._packed
        if self._more is None:
            self._more = {}
        if wire not in self._more:
            self._more[wire] = wire.pack(self.payload)
        return self._more[wire]


def reply_frame(reply: Struct, position: Position | None = None) -> Frame:
    """Make the frame of a reply, with a position where the connection opted in."""
    payload = encode(reply)
    return Frame(payload if position is None else with_position(payload, position))
