"""The figures of an endpoint, as one typed value."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["EndpointStats"]


class EndpointStats(Struct, frozen=True, kw_only=True):
    """Who is connected and who was turned away; `WebSocketEndpoint.stats` returns it.

    Figures named `..._total` only grow. The others are as of now; their bounds are those of
    `ConnectionLimits`.
    """

    connections: int
    """At most `total`."""
    principals: int
    addresses: int
    requests_pending: int
    """Connections that have not sent their request; at most `pending`."""
    authenticating: int
    """Handshakes that wait for `authenticate`; at most `pending`."""

    admitted_total: int
    """Handshakes let in."""
    refused_total: dict[int, int]
    """Handshakes turned away, by HTTP status."""
    closed_total: dict[int, int]
    """Connections that ended, by close code; 1006: without a closing handshake."""
    errors_total: dict[str, int]
    """Commands answered with an error, by its code; `rate_limited` and `forbidden` are limits of
    `SessionLimits`."""
    requests_dropped_total: int
    """Connections dropped because `pending` others came after them and they had sent nothing."""
    requests_too_large_total: int
    """Requests larger than `request_size`, answered 431."""
    requests_unfinished_total: int
    """Connections that ended without a whole request: timed out, gone, or not HTTP."""
    flooded_total: int
    """Connections aborted because they sent more than `ping_burst` pings, or one message in more
    than 1,024 fragments."""
