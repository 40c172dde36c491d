"""Which connections' credentials run out next, so that a tick looks only at those that did."""

from __future__ import annotations

import heapq

from jobqueue_broadcast.delivery import Subscriber

__all__ = ["Expiries"]

# Below this it is not worth the while to look for connections that are gone.
_FEW = 64


class Expiries:
    """Connections by the time their credential expires, soonest first.

    Those that are gone are dropped once they outnumber the others.
    """

    def __init__(self) -> None:
        self._soonest: list[tuple[float, int, Subscriber]] = []
        self._added = 0
        self._most = _FEW

    def __len__(self) -> int:
        return len(self._soonest)

    def add(self, subscriber: Subscriber) -> None:
        """Take note of a connection, if its credential expires at all."""
        expires_at = subscriber.principal.expires_at
        if expires_at is None:
            return
        if len(self._soonest) >= self._most:
            self._soonest = [entry for entry in self._soonest if entry[2].connected]
            heapq.heapify(self._soonest)
            self._most = max(_FEW, 2 * len(self._soonest))
        self._added += 1
        heapq.heappush(self._soonest, (expires_at, self._added, subscriber))

    def due(self, now: float) -> list[Subscriber]:
        """Return, and no longer keep, those whose credential is no longer good.

        Args:
            now: Unix time in seconds.
        """
        due: list[Subscriber] = []
        while self._soonest and self._soonest[0][0] <= now:
            due.append(heapq.heappop(self._soonest)[2])
        return due
