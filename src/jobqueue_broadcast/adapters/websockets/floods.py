"""Bounds on what a peer sends that no gate and no session sees: half requests, and pings.

A peer that connects and sends nothing, or one byte now and then, holds memory until the handshake
times out. `websockets` bounds a request line and a header line (8 KiB each) and the number of
headers (128), which together allow a megabyte; here a request as a whole is bounded.

`websockets` answers every ping, into a full write buffer too, and without a limit. Who pings and
reads nothing would fill the memory; and as asyncio adds up the pieces of a buffer at each write
(since Python 3.12), 256 KiB of empty pings would keep the event loop busy for a minute.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict

from websockets.asyncio.server import ServerConnection

from jobqueue_broadcast.clock import Clock
from jobqueue_broadcast.rate_limit import TokenBucket

__all__ = ["FloodGuard"]

# No `websockets` API answers a request that is not complete.
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"Connection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 22\r\n\r\n"
    b"the request is too big"
)


class FloodGuard:
    """Watches the connections of one endpoint.

    Args:
        clock: For the rate of pings.
        pending: How many connections may wait that have not sent their request. Past it the one
            that has waited longest is dropped: who means it asks at once, so the idle ones go.
        request_size: Bytes of a request; past it the answer is 431.
        ping_rate: Pings and pongs per second from one connection, in the long run.
        ping_burst: Pings and pongs at once; past it the connection is aborted.

    Attributes:
        dropped: Connections dropped because there were too many.
        too_large: Requests answered 431.
        unfinished: Connections that ended before their request was complete, or were not HTTP.
        flooded: Connections aborted because of their pings, or of a message in endless fragments.
    """

    def __init__(
        self, clock: Clock, *, pending: int, request_size: int, ping_rate: float, ping_burst: int
    ) -> None:
        self._clock = clock
        self._limit = pending
        self._request_limit = request_size
        self._ping_rate = ping_rate
        self._ping_burst = ping_burst
        self._sizes: OrderedDict[ServerConnection, int] = OrderedDict()
        self.dropped = 0
        self.too_large = 0
        self.unfinished = 0
        self.flooded = 0

    @property
    def pending(self) -> int:
        """How many connections have not sent their request."""
        return len(self._sizes)

    def add(self, connection: ServerConnection) -> None:
        """Begin to wait for a connection's request."""
        self._sizes[connection] = 0
        if len(self._sizes) > self._limit:
            oldest, _ = self._sizes.popitem(last=False)
            self.dropped += 1
            oldest.transport.abort()

    def take(self, connection: ServerConnection, size: int) -> bool:
        """Note bytes of a request; return whether they may be read."""
        if connection not in self._sizes:
            return False
        self._sizes[connection] += size
        if self._sizes[connection] <= self._request_limit:
            return True
        del self._sizes[connection]
        self.too_large += 1
        # `websockets` has said its last word already when this was no HTTP from the beginning.
        with contextlib.suppress(RuntimeError):
            connection.transport.write(_TOO_LARGE)
        connection.transport.close()
        return False

    def complete(self, connection: ServerConnection) -> None:
        """Wait no more: the request is here."""
        self._sizes.pop(connection, None)

    def lost(self, connection: ServerConnection) -> None:
        """Wait no more: the connection is gone."""
        if self._sizes.pop(connection, None) is not None:
            self.unfinished += 1

    def drop_all(self) -> None:
        """Drop all: the server is closing, and what has not asked yet would only be refused."""
        for connection in list(self._sizes):
            connection.transport.abort()

    def ping_bucket(self) -> TokenBucket:
        """Return the allowance of pings for one connection."""
        return TokenBucket(self._clock, self._ping_rate, self._ping_burst)
