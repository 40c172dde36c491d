"""The frames a server sends, decoded: leniently, so that a newer server's are not the end."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jobqueue_broadcast.client._items import UnknownEvent
from jobqueue_broadcast.client_format import (
    ClientCompleteJob,
    ClientJobAccepted,
    ClientJobAssigned,
    ClientJobProgress,
    ClientJobStatusChanged,
)
from jobqueue_broadcast.commands import (
    JobCancelled,
    JobStatusReply,
    JobSubscribed,
    JobUnsubscribed,
    ResyncRequired,
    ResyncResponse,
)
from jobqueue_broadcast.errors import UndeclaredEvent
from jobqueue_broadcast.event_types import decode_event
from jobqueue_broadcast.events import Event

__all__ = [
    "CLIENT_REPLIES",
    "Envelope",
    "ErrorFrame",
    "decode_client_update",
    "decode_envelope",
    "decode_error",
    "decode_monitor_event",
    "decode_page",
    "decode_resync_required",
    "decode_snapshot",
]


class Envelope(Struct, frozen=True):
    """As much of a frame as tells what to do with it."""

    type: str
    position: str | UnsetType = UNSET
    job_id: str | UnsetType = UNSET


class ErrorFrame(Struct, frozen=True, tag_field="type", tag="error"):
    """An `error`, with whatever code."""

    error: str
    code: str
    message_id: str | UnsetType = UNSET


class _Snapshot(Struct):
    data: dict[str, Any]


CLIENT_REPLIES: dict[str, msgspec.json.Decoder[Any]] = {
    "subscribed": msgspec.json.Decoder(JobSubscribed),
    "unsubscribed": msgspec.json.Decoder(JobUnsubscribed),
    "job_status": msgspec.json.Decoder(JobStatusReply),
    "job_cancelled": msgspec.json.Decoder(JobCancelled),
    "error": msgspec.json.Decoder(ErrorFrame),
}
"""How to decode the answers to a client's commands, by `type`."""

_CLIENT_UPDATES: dict[str, msgspec.json.Decoder[Any]] = {
    "job_accepted": msgspec.json.Decoder(ClientJobAccepted),
    "job_assigned": msgspec.json.Decoder(ClientJobAssigned),
    "job_status_changed": msgspec.json.Decoder(ClientJobStatusChanged),
    "update_job_progress": msgspec.json.Decoder(ClientJobProgress),
    "complete_job": msgspec.json.Decoder(ClientCompleteJob),
}

_object_decoder = msgspec.json.Decoder(dict[str, Any])
_snapshot_decoder = msgspec.json.Decoder(_Snapshot)

decode_envelope = msgspec.json.Decoder(Envelope).decode
decode_error = msgspec.json.Decoder(ErrorFrame).decode
decode_page = msgspec.json.Decoder(ResyncResponse).decode
decode_resync_required = msgspec.json.Decoder(ResyncRequired).decode


def decode_snapshot(frame: bytes) -> dict[str, Any]:
    """Return `data` of a `full_state_snapshot`."""
    return _snapshot_decoder.decode(frame).data


def decode_monitor_event(frame: bytes) -> Event | UnknownEvent:
    """Return the event of an original-format frame, typed where its type is known."""
    try:
        return decode_event(frame)
    except (UndeclaredEvent, msgspec.ValidationError):
        return _unknown(frame)


def decode_client_update(frame: bytes, kind: str) -> Any:
    """Return the update of an EmProps frame, typed where its type is known."""
    decoder = _CLIENT_UPDATES.get(kind)
    if decoder is not None:
        try:
            return decoder.decode(frame)
        except msgspec.ValidationError:
            pass
    return _unknown(frame)


def _unknown(frame: bytes) -> UnknownEvent:
    data = _object_decoder.decode(frame)
    timestamp = data.get("timestamp")
    return UnknownEvent(
        type=str(data.get("type", "")),
        timestamp=timestamp if isinstance(timestamp, int) else 0,
        data=data,
    )
