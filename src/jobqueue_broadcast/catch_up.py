"""What a connection is sent before live events: the past it continues from, or a state.

A `Past` is read chunk by chunk, as fast as its connection takes it, so that a long history never
piles up in memory. When it is exhausted the connection has everything up to the newest event, and
live events go on from there: no gap, no duplicate, no reordering (wire protocol, section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

from jobqueue_broadcast.frames import Frame
from jobqueue_broadcast.history import History, Record, Trimmed
from jobqueue_broadcast.positions import Position

__all__ = ["Reason", "past", "why_not"]

Reason: TypeAlias = Literal["epoch", "trimmed"]


def why_not(history: History, position: Position) -> Reason | None:
    """Return why a position cannot be continued from; `None`: it can."""
    if position.epoch != history.epoch or position.sequence > history.head:
        return "epoch"
    return None if history.covers(position.sequence) else "trimmed"


def past(
    history: History,
    begin: Position,
    *,
    greeting: list[Frame],
    frame_of: Callable[[Record], Frame | None],
    restart: Callable[[Reason], list[Frame]],
    finish: Callable[[], list[Frame]],
    reason: Reason | None = None,
) -> Iterator[list[Frame]]:
    """Yield everything from a position up to the newest event.

    Args:
        history: The retained events.
        begin: The position to continue after.
        greeting: Sent first.
        frame_of: The frame of a retained event, if this connection is to have it.
        restart: The frames to begin anew with where continuity is impossible.
        finish: Frames owed once the newest event is reached; none when it has been asked before.
        reason: Why continuity is impossible for this connection, whatever the history holds.
    """
    yield greeting
    at = begin
    reason = reason or why_not(history, at)
    while True:
        # Whatever is yielded may wait long, and the history is another one by then.
        if reason is not None:
            frames = restart(reason)
            at, reason = history.position, None
            yield frames
        try:
            for chunk in history.after(at):
                at = Position(at.epoch, chunk[-1].sequence)
                yield [frame for record in chunk if (frame := frame_of(record))]
        except Trimmed:
            reason = why_not(history, at) or "trimmed"
            continue
        frames = finish()
        if not frames:
            return
        at = history.position
        yield frames
