"""The exceptions a host may meet, and the WebSocket close codes a peer may meet.

::

    BroadcastError
    ├── InvalidArgument (ValueError)     the host passed something that cannot be right
    │   ├── UnknownTopic                 a topic no declared event type belongs to
    │   └── UndeclaredEvent              an event class that `declare_event` has not seen
    ├── WrongThread (RuntimeError)       called beside the event loop; use `broadcast_threadsafe`
    ├── NotBound (RuntimeError)          a call that needs an event loop before there is one
    ├── HookRefusal                      raised by a host's hook to answer a peer with an error
    ├── IdTaken                          the monitor or client id belongs to another principal
    ├── Replaced                         a newer connection of the principal has the id already
    ├── BackplaneError
    │   ├── BackplaneFull                the bounded publish queue is full: the engine is away
    │   └── BackplaneUnavailable         the engine cannot be reached at all
    └── PeerError                        raised by `jobqueue_broadcast.client`
        ├── ConnectRefused               the server answered the handshake with an HTTP status
        ├── ConnectionEnded              closed with a code that says "do not reconnect"
        ├── CommandFailed                the server answered a command with an error
        └── JobFailedError               the awaited job failed; carries the job's error

Faults of a peer never raise into host code: they are answered, counted and logged.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

__all__ = [
    "BackplaneError",
    "BackplaneFull",
    "BackplaneUnavailable",
    "BroadcastError",
    "CloseCode",
    "CommandFailed",
    "ConnectRefused",
    "ConnectionEnded",
    "HookRefusal",
    "IdTaken",
    "InvalidArgument",
    "JobFailedError",
    "NotBound",
    "PeerError",
    "Replaced",
    "UndeclaredEvent",
    "UnknownTopic",
    "WrongThread",
]


class CloseCode(IntEnum):
    """Why the server closed a connection (wire protocol, section 5, close codes)."""

    GOING_AWAY = 1001
    UNSUPPORTED_DATA = 1003
    INVALID_DATA = 1007
    MESSAGE_TOO_BIG = 1009
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    TOO_SLOW = 4408
    REPLACED = 4409
    TOO_MANY_COMMANDS = 4429

    @property
    def reconnect(self) -> bool:
        """Whether a peer should connect again by itself, with the credential it holds."""
        return self in _RECONNECT


_RECONNECT = frozenset({CloseCode.GOING_AWAY, CloseCode.TOO_SLOW, CloseCode.TOO_MANY_COMMANDS})


class BroadcastError(Exception):
    """Root of every exception this library raises on purpose."""


class InvalidArgument(BroadcastError, ValueError):
    """An argument cannot be right; the message names it and what was expected."""


class UnknownTopic(InvalidArgument):
    """A topic that no declared event type belongs to."""


class UndeclaredEvent(InvalidArgument):
    """An event class the library was never told about; see `declare_event`."""


class WrongThread(BroadcastError, RuntimeError):
    """Called from a thread other than the event loop's; use `broadcast_threadsafe`."""


class NotBound(BroadcastError, RuntimeError):
    """The call needs an event loop, and no adapter has bound one yet."""


class HookRefusal(BroadcastError):
    """Raised by a host's `submit` or `cancel` hook to answer the peer with an error.

    Args:
        error: A sentence for the peer.
        code: One of the wire protocol's error codes.
    """

    def __init__(
        self,
        error: str,
        code: Literal["invalid_field", "not_found", "forbidden", "rate_limited"] = "forbidden",
    ) -> None:
        super().__init__(error, code)
        self.error = error
        self.code: Literal["invalid_field", "not_found", "forbidden", "rate_limited"] = code

    def __str__(self) -> str:
        return self.error


class IdTaken(BroadcastError):
    """The monitor or client id belongs to another principal."""


class Replaced(BroadcastError):
    """A newer connection of the same principal has the id already, here or on another node."""


class BackplaneError(BroadcastError):
    """The engine behind the backplane did not do what was asked."""


class BackplaneFull(BackplaneError):
    """The bounded queue of events to publish is full; the event was not taken."""


class BackplaneUnavailable(BackplaneError):
    """The engine behind the backplane cannot be reached."""


class PeerError(BroadcastError):
    """Root of what the Python peers raise to their callers."""


class ConnectRefused(PeerError):
    """The server refused the handshake with an HTTP status that retrying will not change."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return f"the server refused the connection with HTTP {self.status}: {self.reason}"


class ConnectionEnded(PeerError):
    """The connection was closed with a code that says "do not reconnect"."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return f"the server closed the connection with code {self.code}: {self.reason}"


class CommandFailed(PeerError):
    """The server answered a command with an `error` frame."""

    def __init__(self, code: str, error: str) -> None:
        super().__init__(code, error)
        self.code = code
        self.error = error

    def __str__(self) -> str:
        return f"{self.code}: {self.error}"


class JobFailedError(PeerError):
    """The awaited job failed."""

    def __init__(self, job_id: str, error: str) -> None:
        super().__init__(job_id, error)
        self.job_id = job_id
        self.error = error

    def __str__(self) -> str:
        return f"job {self.job_id} failed: {self.error}"
