"""Which entries were seen before: what a sender repeats after a broken connection is shown once."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict

__all__ = ["Repeats"]

_MOST_RANGES = 64


class _Seen:
    """The counters seen of one sender, as ranges; nearly always one range that grows."""

    __slots__ = ("first", "last")

    def __init__(self) -> None:
        self.first: list[int] = []
        self.last: list[int] = []

    def __contains__(self, counter: int) -> bool:
        at = bisect_right(self.first, counter) - 1
        return at >= 0 and counter <= self.last[at]

    def add(self, counter: int) -> None:
        """Note a counter not seen before."""
        first, last = self.first, self.last
        at = bisect_right(first, counter)
        joins_left = at > 0 and last[at - 1] == counter - 1
        joins_right = at < len(first) and first[at] == counter + 1
        if joins_left and joins_right:
            last[at - 1] = last[at]
            del first[at], last[at]
        elif joins_left:
            last[at - 1] = counter
        elif joins_right:
            first[at] = counter
        else:
            first.insert(at, counter)
            last.insert(at, counter)
            if len(first) > _MOST_RANGES:
                # What lies between the two oldest ranges is so old that it will not come.
                del last[0], first[1]


class Repeats:
    """The counters seen of each sender.

    Args:
        limit: How many senders are remembered; the one silent for longest goes first.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._senders: OrderedDict[bytes, _Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._senders)

    def has(self, node: bytes | None, counter: int) -> bool:
        """Tell whether an entry was seen; one without a sender never was."""
        seen = None if node is None else self._senders.get(node)
        return seen is not None and counter in seen

    def take(self, node: bytes | None, counter: int) -> bool:
        """Note an entry; return whether it is new."""
        if node is None:
            return True
        seen = self._senders.get(node)
        if seen is None:
            seen = self._senders[node] = _Seen()
            if len(self._senders) > self._limit:
                self._senders.popitem(last=False)
        self._senders.move_to_end(node)
        if counter in seen:
            return False
        seen.add(counter)
        return True
