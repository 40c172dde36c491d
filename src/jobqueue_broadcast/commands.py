"""What a peer may ask, and what it is answered: inbound structs and replies of both conversations.

The shapes are the wire protocol's section 5. Inbound frames are decoded strictly; what is not
understood becomes a `BadFrame`, which knows the `error` frame to answer with and repeats nothing
of the peer's but its `message_id`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from jobqueue_broadcast.events import Id

__all__ = [
    "BadFrame",
    "CancelJob",
    "ClientCommand",
    "Connected",
    "ConnectionEstablished",
    "ErrorCode",
    "ErrorReply",
    "FullStateSnapshot",
    "GetJobStatus",
    "Heartbeat",
    "HeartbeatAck",
    "JobCancelled",
    "JobInfo",
    "JobStatusReply",
    "JobSubscribed",
    "JobUnsubscribed",
    "MonitorCommand",
    "MonitorFilters",
    "MonitorSubscribed",
    "Reply",
    "RequestFullState",
    "ResyncRequest",
    "ResyncRequired",
    "ResyncResponse",
    "SubmitJob",
    "Subscribe",
    "SubscribeProgress",
    "UnsubscribeProgress",
    "decode_client_command",
    "decode_monitor_command",
]

MessageId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=128)]
_Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
_Names: TypeAlias = Annotated[list[_Text], Meta(min_length=1, max_length=256)]

ErrorCode: TypeAlias = Literal[
    "bad_json",
    "unknown_type",
    "invalid_field",
    "not_found",
    "forbidden",
    "rate_limited",
    "unsupported",
    "internal",
]


# --- what a monitor may ask ----------------------------------------------------------------------


class MonitorCommand(Struct, frozen=True, kw_only=True, tag_field="type"):
    """A frame from a monitor."""


class MonitorFilters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`filters` of a `subscribe` frame."""

    job_types: _Names | UnsetType = UNSET
    worker_ids: _Names | UnsetType = UNSET
    priority_range: tuple[int, int] | UnsetType = UNSET


class Subscribe(MonitorCommand, frozen=True, kw_only=True, tag="subscribe"):
    """Replace the topics and filters."""

    topics: Annotated[list[_Text], Meta(min_length=1, max_length=256)]
    filters: MonitorFilters | UnsetType = UNSET
    message_id: MessageId | UnsetType = UNSET


class RequestFullState(MonitorCommand, frozen=True, kw_only=True, tag="request_full_state"):
    """Ask for everything as it is now."""

    message_id: MessageId | UnsetType = UNSET


class ResyncRequest(MonitorCommand, frozen=True, kw_only=True, tag="resync_request"):
    """Ask for the retained events at and after a time."""

    since_timestamp: Annotated[int, Meta(ge=0)]
    max_events: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    message_id: MessageId | UnsetType = UNSET


class Heartbeat(MonitorCommand, frozen=True, kw_only=True, tag="heartbeat"):
    """Ask for a sign of life."""

    monitor_id: Id | UnsetType = UNSET
    message_id: MessageId | UnsetType = UNSET


# --- what a client may ask -----------------------------------------------------------------------


class ClientCommand(Struct, frozen=True, kw_only=True, tag_field="type"):
    """A frame from a client."""

    message_id: MessageId | UnsetType = UNSET


class SubmitJob(ClientCommand, frozen=True, kw_only=True, tag="submit_job"):
    """Submit a job; the host's submit hook receives this struct."""

    job_type: _Text
    priority: int = 0
    payload: dict[str, Any] | UnsetType = UNSET
    requirements: dict[str, Any] | UnsetType = UNSET
    workflow_id: _Text | UnsetType = UNSET
    workflow_priority: int | UnsetType = UNSET
    workflow_datetime: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    current_step: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    total_steps: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    customer_id: _Text | UnsetType = UNSET


class SubscribeProgress(ClientCommand, frozen=True, kw_only=True, tag="subscribe_progress"):
    """Subscribe to a job."""

    job_id: Id


class UnsubscribeProgress(ClientCommand, frozen=True, kw_only=True, tag="unsubscribe_progress"):
    """Unsubscribe from a job."""

    job_id: Id


class GetJobStatus(ClientCommand, frozen=True, kw_only=True, tag="get_job_status"):
    """Ask for what is known of a job."""

    job_id: Id


class CancelJob(ClientCommand, frozen=True, kw_only=True, tag="cancel_job"):
    """Ask the host to cancel a job."""

    job_id: Id


# --- what they are answered ----------------------------------------------------------------------


class Reply(Struct, frozen=True, kw_only=True, tag_field="type"):
    """A frame to one connection that tells of no event."""

    timestamp: int


class Connected(Reply, frozen=True, kw_only=True, tag="connected"):
    """A monitor's greeting."""


class ConnectionEstablished(Reply, frozen=True, kw_only=True, tag="connection_established"):
    """A client's greeting."""

    message: Literal["Connected to server"] = "Connected to server"


class MonitorSubscribed(Reply, frozen=True, kw_only=True, tag="subscribed"):
    """The monitor's topics and filters are replaced."""

    monitor_id: str
    topics: list[str]


class FullStateSnapshot(Reply, frozen=True, kw_only=True, tag="full_state_snapshot"):
    """Everything as it is now; `data` as `EventBroadcaster.full_state` returns it."""

    data: Any


class ResyncResponse(Reply, frozen=True, kw_only=True, tag="resync_response"):
    """A page of retained events."""

    monitor_id: str
    events: list[Raw]
    has_more: bool
    oldest_available_timestamp: int


class HeartbeatAck(Reply, frozen=True, kw_only=True, tag="heartbeat_ack"):
    """A sign of life."""

    monitor_id: str
    server_timestamp: int


class JobSubscribed(Reply, frozen=True, kw_only=True, tag="subscribed"):
    """The client is subscribed to the job."""

    job_id: str
    message_id: str | UnsetType = UNSET


class JobUnsubscribed(Reply, frozen=True, kw_only=True, tag="unsubscribed"):
    """The client is not subscribed to the job."""

    job_id: str
    message_id: str | UnsetType = UNSET


class JobInfo(Struct, frozen=True, kw_only=True):
    """What is known of one job."""

    id: str
    job_type: str | UnsetType = UNSET
    status: str
    progress: float | UnsetType = UNSET
    worker_id: str | UnsetType = UNSET
    result: Any = UNSET
    error: str | UnsetType = UNSET
    created_at: int | UnsetType = UNSET
    completed_at: int | UnsetType = UNSET


class JobStatusReply(Reply, frozen=True, kw_only=True, tag="job_status"):
    """Answer to `get_job_status`."""

    job_id: str
    message_id: str | UnsetType = UNSET
    job: JobInfo


class JobCancelled(Reply, frozen=True, kw_only=True, tag="job_cancelled"):
    """The host's cancel hook ran."""

    job_id: str
    message_id: str | UnsetType = UNSET


class ResyncRequired(Reply, frozen=True, kw_only=True, tag="resync_required"):
    """Continuity is not possible; the state that follows starts anew."""

    reason: Literal["epoch", "trimmed"]
    position: str


class ErrorReply(Reply, frozen=True, kw_only=True, tag="error"):
    """A command was not carried out."""

    error: str
    code: ErrorCode
    message_id: str | UnsetType = UNSET


# --- decoding ------------------------------------------------------------------------------------


class BadFrame(Exception):
    """A frame that is not understood, and the answer it gets."""

    def __init__(self, code: ErrorCode, error: str, message_id: str | UnsetType = UNSET) -> None:
        super().__init__(error)
        self.code: ErrorCode = code
        self.error = error
        self.message_id = message_id

    def reply(self, now: int) -> ErrorReply:
        """Return the `error` frame to send."""
        return ErrorReply(
            timestamp=now, code=self.code, error=self.error, message_id=self.message_id
        )


AnyMonitorCommand: TypeAlias = Subscribe | RequestFullState | ResyncRequest | Heartbeat
AnyClientCommand: TypeAlias = (
    SubmitJob | SubscribeProgress | UnsubscribeProgress | GetJobStatus | CancelJob
)

_MONITOR_TYPES = ("subscribe", "request_full_state", "resync_request", "heartbeat")
_CLIENT_TYPES = (
    "submit_job",
    "subscribe_progress",
    "unsubscribe_progress",
    "get_job_status",
    "cancel_job",
)

_monitor_decoder: msgspec.json.Decoder[AnyMonitorCommand] = msgspec.json.Decoder(AnyMonitorCommand)
_client_decoder: msgspec.json.Decoder[AnyClientCommand] = msgspec.json.Decoder(AnyClientCommand)


class _Envelope(Struct):
    """As much of a frame as an answer needs, of whatever types the peer gave."""

    type: Any = UNSET
    message_id: Any = UNSET


_envelope_decoder = msgspec.json.Decoder(_Envelope)

_NOT_JSON = "expected one JSON object in UTF-8"


def decode_monitor_command(text: str | bytes) -> AnyMonitorCommand:
    """Return the command in a monitor's frame.

    Raises:
        BadFrame: It is not one.
    """
    try:
        return _monitor_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _bad_frame(text, error, _MONITOR_TYPES) from None


def decode_client_command(text: str | bytes) -> AnyClientCommand:
    """Return the command in a client's frame.

    Raises:
        BadFrame: It is not one.
    """
    try:
        return _client_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _bad_frame(text, error, _CLIENT_TYPES) from None


def _bad_frame(text: str | bytes, error: Exception, types: tuple[str, ...]) -> BadFrame:
    """Say what is wrong with a frame, without repeating any of it."""
    try:
        envelope = _envelope_decoder.decode(text)
    except msgspec.ValidationError:
        return BadFrame("invalid_field", "expected a JSON object with a string `type`")
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return BadFrame("bad_json", _NOT_JSON)
    if not isinstance(error, msgspec.ValidationError):
        # What the envelope skips is not looked at closely: bytes that are not UTF-8, say.
        return BadFrame("bad_json", _NOT_JSON)
    message_id = envelope.message_id
    known_id = isinstance(message_id, str) and 1 <= len(message_id) <= 128
    echoed = message_id if known_id else UNSET
    if not isinstance(envelope.type, str):
        return BadFrame("invalid_field", "type: expected a string", echoed)
    if envelope.type not in types:
        return BadFrame("unknown_type", f"type: expected one of {', '.join(types)}", echoed)
    return BadFrame("invalid_field", _field_and_expectation(str(error)), echoed)


# What msgspec says that repeats nothing of the frame: types, limits, and names of our own fields.
# Other sentences of its own do repeat something: a key it does not know, one of two `type`s.
_SAID = re.compile(
    r"Object missing required field `(?P<missing>\w+)`"
    r"|(?P<expected>Expected `\w+`(?:, got `\w+`| of length \d+|(?: of length)? [<>]= \d+)?"
    r"|Integer value out of range|Number out of range)"
    # Below a free-form field the path goes on as deep as the peer likes; it is cut there.
    r" - at `\$\.(?P<path>[a-z_]+(?:\.[a-z_]+|\[\d+\])*)(?:\[\.\.\.\][\[\]\d.]*)?`"
)


def _field_and_expectation(said: str) -> str:
    """Turn msgspec's words into "field: what was expected"."""
    if "unknown field" in said:
        return "filters: expected only job_types, worker_ids and priority_range"
    if (words := _SAID.fullmatch(said)) is None:
        return "expected one `type` and the fields it has"
    if words["missing"]:
        return f"{words['missing']}: expected, but missing"
    return f"{words['path']}: {words['expected']}"
