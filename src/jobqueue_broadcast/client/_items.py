"""What the peers' iterators yield beside events: a gap, and what this version does not know."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

__all__ = ["Gap", "ResyncPage", "UnknownEvent"]


class Gap(Struct, frozen=True, kw_only=True):
    """Something was missed: what the caller built from earlier items is to be rebuilt.

    Attributes:
        reason: `"epoch"`: the server's sequence of events began anew; `"trimmed"`: the server no
            longer had what was missed; `"slow"`: a `watch` was left unread for so long that status
            changes were let go of (never an outcome).
        position: Where later events continue from; `None` for `"slow"`.
        state: For monitors: everything as it is now, `data` of the wire's `full_state_snapshot`
            (section 5). `None` for a watched job, whose present state follows as updates.
    """

    reason: Literal["epoch", "trimmed", "slow"]
    position: str | None = None
    state: dict[str, Any] | None = None


class UnknownEvent(Struct, frozen=True, kw_only=True):
    """An event of a type, or with values, that this side does not know: a newer server's, a host's.

    Declare the host's event classes here too (`declare_event`) to get them typed.

    Attributes:
        type: The frame's `type`.
        timestamp: Unix time in milliseconds; 0 without one.
        data: The whole frame.
    """

    type: str
    timestamp: int
    data: dict[str, Any]


class ResyncPage(Struct, frozen=True, kw_only=True):
    """Retained events at and after a time, oldest first; what `MonitorPeer.resync` returns.

    Attributes:
        events: The events. Those at the asked time itself are included.
        has_more: Whether there are later ones: ask again with the last event's timestamp.
        oldest_available_timestamp: Unix time in milliseconds before which nothing is retained.
    """

    events: list[Any]
    has_more: bool
    oldest_available_timestamp: int
