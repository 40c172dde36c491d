"""What lies in Redis: the keys, an entry of the stream, and how its id is a sequence.

An entry holds the payload as `p`, and as `n` and `c` who appended it and the how-manieth of theirs
it is, by which a repeat is known. An entry with `b` begins an empty stream and holds no payload.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

__all__ = [
    "BadEntry",
    "Command",
    "Entry",
    "Keys",
    "append",
    "before",
    "begin",
    "job_payloads",
    "parse_entry",
    "sequence_of",
]

Command: TypeAlias = tuple[bytes | str | int, ...]

# An id is two unsigned 64-bit numbers, <milliseconds>-<n> (https://redis.io/docs/latest/develop/
# data-types/streams/#entry-ids). Packed whole, no two ids can collide or change places.
_BITS = 64
_LARGEST = (1 << _BITS) - 1

# What makes a job's state besides its progress; kept per job for whoever asks after the stream was
# trimmed. Sixteen are more than a job has unless it is run again and again.
_MILESTONES = frozenset(
    {b"$job_accepted", b"job_submitted", b"job_status_changed", b"complete_job", b"job_failed"}
)
_MILESTONES_KEPT = 16

# Kept by principal, for nodes that start when the stream no longer tells.
_REVOCATIONS = frozenset({b"$principal_revoked", b"$principal_unrevoked"})
_REVOCATIONS_TTL = 30 * 24 * 3600


class BadEntry(ValueError):
    """An entry of the stream that this library cannot have appended."""


class Keys:
    """The names of the keys under one prefix.

    Args:
        prefix: Begins every key; one with a `{tag}` keeps all keys in one slot of a cluster.
    """

    __slots__ = ("epoch", "events", "prefix", "revocations")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.events = f"{prefix}:events"
        self.epoch = f"{prefix}:epoch"
        self.revocations = f"{prefix}:revocations"

    def probe(self, node: str) -> str:
        """The stream by which a node finds out whether it hears itself."""
        return f"{self.prefix}:probe:{node}"

    def job(self, job_id: str) -> str:
        """The list of a job's milestones."""
        return f"{self.prefix}:job:{job_id}"

    def outcome(self, sequence: int) -> str:
        """What is known of the outcome with this sequence: that it was taken, or reported."""
        return f"{self.prefix}:outcome:{sequence}"


class Entry(NamedTuple):
    """One entry of the stream.

    Attributes:
        id: As Redis names it.
        payload: The event or control message; `None` where a stream begins.
        node: Who appended it; `None` for one appended by hand.
        counter: The how-manieth of theirs.
    """

    id: bytes
    payload: bytes | None
    node: bytes | None
    counter: int


class _JobOf(Struct):
    job_id: str


class _PrincipalOf(Struct):
    principal_id: str


_job_of = msgspec.json.Decoder(_JobOf)
_principal_of = msgspec.json.Decoder(_PrincipalOf)


def sequence_of(entry_id: bytes) -> int:
    """Return the sequence of an id: ids and sequences have the same order."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds) << _BITS | int(number)


def before(entry_id: bytes) -> bytes:
    """Return the largest id below this one, to read from it on, itself included."""
    sequence = max(sequence_of(entry_id) - 1, 0)
    return b"%d-%d" % (sequence >> _BITS, sequence & _LARGEST)


def parse_entry(raw: Any) -> Entry:
    """Return what an entry holds.

    Raises:
        BadEntry: It was not appended by this library.
    """
    entry_id, flat = raw
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if b"b" in fields:
        return Entry(entry_id, None, None, 0)
    payload = fields.get(b"p")
    counter = fields.get(b"c", b"0")
    if payload is None or not counter.isdigit() or len(counter) > 18:
        raise BadEntry("expected the fields p, n and c")
    return Entry(entry_id, payload, fields.get(b"n"), int(counter))


def begin(keys: Keys) -> Command:
    """Return the command that puts a first entry into an empty stream.

    A reader holds on to the last entry it read to know that it missed none, so there must be one.
    """
    return ("XADD", keys.events, "*", "b", "1")


def append(
    keys: Keys, node: str, counter: int, payload: bytes, *, retained: int, job_ttl: int
) -> list[Command]:
    """Return the commands that append a payload, and keep it for its job if it is a milestone.

    Args:
        keys: Where to.
        node: Who appends it.
        counter: The how-manieth of theirs it is.
        payload: An encoded event or control message.
        retained: How many entries the stream keeps, about: whole nodes of its tree are cut off,
            which is far cheaper than one entry at a time (https://redis.io/commands/xadd/).
        job_ttl: Seconds to keep a job's milestones after the newest.
    """
    # fmt: off
    commands: list[Command] = [
        ("XADD", keys.events, "MAXLEN", "~", retained, "*", "p", payload, "n", node, "c", counter)
    ]
    # fmt: on
    kind = _type_of(payload)
    if kind in _REVOCATIONS:
        commands += [
            ("HSET", keys.revocations, _principal_of.decode(payload).principal_id, payload),
            ("EXPIRE", keys.revocations, _REVOCATIONS_TTL),
        ]
    if kind in _MILESTONES:
        key = keys.job(_job_of.decode(payload).job_id)
        # With its sender and counter, so that one that was sent twice is taken once.
        commands += [
            ("RPUSH", key, b"%b %d %b" % (node.encode(), counter, payload)),
            ("LTRIM", key, -_MILESTONES_KEPT, -1),
            ("EXPIRE", key, job_ttl),
        ]
    return commands


def job_payloads(items: list[bytes]) -> list[bytes]:
    """Return the milestones of a job, in order, each once."""
    payloads: dict[tuple[bytes, bytes], bytes] = {}
    for item in items:
        node, _, rest = item.partition(b" ")
        counter, _, payload = rest.partition(b" ")
        payloads.setdefault((node, counter), payload)
    return list(payloads.values())


def _type_of(payload: bytes) -> bytes:
    """Return the `type` of a payload encoded here: it is the first field."""
    end = payload.find(b'"', 9)
    return payload[9:end] if payload.startswith(b'{"type":"') else b""
