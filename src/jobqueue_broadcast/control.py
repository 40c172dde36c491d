"""What nodes must agree on besides events: acceptances and revocations.

These travel over the backplane in the same order as the events, tagged with a `type` that begins
with `$`, which no event type may. They never reach a peer.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from jobqueue_broadcast.events import encode

__all__ = [
    "Control",
    "JobAccepted",
    "PeerReplaced",
    "PrincipalRevoked",
    "PrincipalUnrevoked",
    "decode_control",
    "encode",
    "is_control",
]


class _Control(Struct, frozen=True, kw_only=True, tag_field="type"):
    pass


class JobAccepted(_Control, frozen=True, kw_only=True, tag="$job_accepted"):
    """A submit hook took a job for a principal, whose client is to hear of it."""

    job_id: str
    owner: str | None
    timestamp: int
    client_id: str | None = None


class PrincipalRevoked(_Control, frozen=True, kw_only=True, tag="$principal_revoked"):
    """A principal's credentials up to now are no longer good."""

    principal_id: str
    timestamp: int


class PrincipalUnrevoked(_Control, frozen=True, kw_only=True, tag="$principal_unrevoked"):
    """A revocation is undone."""

    principal_id: str
    timestamp: int


class PeerReplaced(_Control, frozen=True, kw_only=True, tag="$peer_replaced"):
    """A connection has an id now: those of before are replaced, on whichever node they are.

    `number` is the connection's, as the backplane gave it out.
    """

    kind: Literal["monitor", "client"]
    id: str
    number: int


Control: TypeAlias = JobAccepted | PeerReplaced | PrincipalRevoked | PrincipalUnrevoked

_decoder: msgspec.json.Decoder[Control] = msgspec.json.Decoder(Control)


def is_control(payload: bytes) -> bool:
    """Tell whether a payload is one of these, and not an event."""
    return payload.startswith(b'{"type":"$')


def decode_control(payload: bytes) -> Control:
    """Return what the payload says.

    Raises:
        msgspec.MsgspecError: It is not one of these.
    """
    try:
        return _decoder.decode(payload)
    except UnicodeError:
        raise msgspec.DecodeError("expected UTF-8") from None
