"""What a node makes of the stream: the entries in order, and whether it missed any. No I/O here.

After each read the reader looks at its *anchor*, the last entry it had read before. Entries are
only ever cut off at the front, so as long as the anchor is there, unchanged, nothing after it was
missed, whatever happened meanwhile; and when it is not, something was, or may have been: the node
was frozen too long, or the stream was deleted, emptied, or replaced by that of another server.
(`max-deleted-entry-id` of `XINFO` would say less, and needs Redis 7.)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from jobqueue_broadcast.backplane.redis.entries import (
    BadEntry,
    Command,
    Entry,
    Keys,
    before,
    parse_entry,
    sequence_of,
)

__all__ = [
    "Break",
    "Cursor",
    "Round",
    "continuity",
    "entries_of",
    "read",
    "read_round",
    "why_broken",
]

Break: TypeAlias = Literal["trimmed", "flushed", "epoch"]
"""How continuity was lost: entries cut off before they were read; the stream emptied or put back;
another node noticed that first."""


class Cursor:
    """How far a node has read.

    Attributes:
        epoch: The epoch in which it reads.
        last: The id of the last entry read.
        anchor: That entry, as Redis gave it; `None` before the first read.
        probe: The id of the last probe heard.
    """

    __slots__ = ("anchor", "epoch", "last", "probe")

    def __init__(self, epoch: bytes, first: bytes) -> None:
        self.epoch = epoch
        self.last = before(first)
        self.anchor: Any = None
        self.probe = b"0-0"

    @property
    def sequence(self) -> int:
        """The sequence of the last entry read."""
        return sequence_of(self.last)


class Round(NamedTuple):
    """The answer to one read.

    Attributes:
        raw: The entries after the cursor, as Redis gave them.
        probe: The id of the newest probe among the answer, if there is one.
        anchor: What is now where the cursor's anchor was.
        epoch: The epoch now; `None`: there is none.
    """

    raw: list[Any]
    probe: bytes | None
    anchor: Any
    epoch: bytes | None


def read(keys: Keys, node: str, cursor: Cursor, most: int, block_ms: int) -> list[Command]:
    """Return the commands of one read: entries and probes, then the anchor and the epoch.

    A client that blocks is not served its next command before it is unblocked, so the anchor is
    looked at after the entries were read. `block_ms` 0 does not block.
    """
    block: Command = ("BLOCK", block_ms) if block_ms else ()
    streams: Command = ("STREAMS", keys.events, keys.probe(node), cursor.last, cursor.probe)
    return [
        ("XREAD", "COUNT", most, *block, *streams),
        ("XRANGE", keys.events, cursor.last, cursor.last),
        ("GET", keys.epoch),
    ]


def read_round(keys: Keys, answers: list[Any]) -> Round:
    """Return what the answers to `read` say."""
    streams, anchor, epoch = answers
    raw: list[Any] = []
    probe: bytes | None = None
    for name, entries in streams or ():
        if name == keys.events.encode():
            raw = entries
        elif entries:
            probe = entries[-1][0]
    return Round(raw, probe, anchor[0] if anchor else None, epoch)


def continuity(cursor: Cursor, answer: Round) -> bool:
    """Tell whether the entries of this round follow the cursor with nothing missed between."""
    return answer.epoch == cursor.epoch and answer.anchor == cursor.anchor


def why_broken(cursor: Cursor, epoch: bytes | None, first: Any) -> Break:
    """Return how continuity was lost, from what is there now.

    Args:
        cursor: How far the node had read.
        epoch: The epoch there is now, if any.
        first: The stream's first entry, if it has one.
    """
    if epoch is None or first is None:
        return "flushed"
    if epoch != cursor.epoch:
        return "epoch"
    # What begins after all we read was merely cut off. What began before, without our anchor in
    # it, is another past: ids went backwards, or it was continued from an older copy.
    if sequence_of(first[0]) > cursor.sequence:
        return "trimmed"
    return "flushed"


def entries_of(raw: list[Any]) -> tuple[list[Entry], int]:
    """Return the entries, and how many there were that are not ours."""
    entries: list[Entry] = []
    bad = 0
    for item in raw:
        try:
            entries.append(parse_entry(item))
        except (BadEntry, ValueError, TypeError):
            bad += 1
    return entries, bad
