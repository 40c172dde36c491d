"""What a node has yet to append, and what it may have to append again. No I/O here.

A payload is under way until it was read back: an answer to its `XADD` may be lost, and an entry
that was answered for may be lost in a failover. It is then kept a little longer, because another
node may not have read it before the stream was emptied. Readers drop repeats, so sending one again
does no harm.
"""

from __future__ import annotations

from collections import deque

from jobqueue_broadcast.errors import BackplaneFull

__all__ = ["Outgoing"]


class Item:
    """A payload on its way.

    Attributes:
        counter: The how-manieth of this node it is.
        payload: The event or control message.
        sequence: Where it was appended; 0 until that is known.
        back_at: When it was read back, by the steady clock.
    """

    __slots__ = ("back_at", "counter", "payload", "sequence")

    def __init__(self, counter: int, payload: bytes) -> None:
        self.counter = counter
        self.payload = payload
        self.sequence = 0
        self.back_at: float | None = None


class Outgoing:
    """A bounded queue of payloads, in order.

    Args:
        limit: How many payloads may wait to be appended.
        byte_limit: How many bytes of them.
        keep: Seconds a payload that was read back is kept.
        keep_limit: How many appended payloads are kept; past it the oldest go.
    """

    def __init__(self, limit: int, byte_limit: int, keep: float, keep_limit: int) -> None:
        self.limit = limit
        self.byte_limit = byte_limit
        self._keep = keep
        self._keep_limit = keep_limit
        self._counter = 0
        self._waiting: deque[Item] = deque()
        self._flying: list[Item] = []
        self._sent: deque[Item] = deque()
        self._not_back: dict[int, Item] = {}
        self.size = 0
        """Bytes that wait to be appended."""
        self.repeated = 0
        """How often a payload was queued a second time."""

    def __len__(self) -> int:
        """How many payloads wait to be appended, or for the answer to that."""
        return len(self._waiting) + len(self._flying)

    @property
    def not_back(self) -> int:
        """How many payloads were appended and have not come back."""
        return len(self._not_back)

    def put(self, payload: bytes) -> None:
        """Queue a payload.

        Raises:
            BackplaneFull: There is no room.
        """
        if len(self) >= self.limit or self.size + len(payload) > self.byte_limit:
            raise BackplaneFull(
                f"{len(self)} payloads ({self.size} bytes) wait to be published:"
                " Redis is away or too slow; this one was not taken"
            )
        self._counter += 1
        self._waiting.append(Item(self._counter, payload))
        self.size += len(payload)

    def take(self, most: int, most_bytes: int) -> list[Item]:
        """Return the next payloads to append together; `sent` or `failed` must follow."""
        size = 0
        while self._waiting and len(self._flying) < most and size < most_bytes:
            item = self._waiting.popleft()
            size += len(item.payload)
            self._flying.append(item)
        return list(self._flying)

    def sent(self, sequences: list[int]) -> None:
        """Note where the payloads taken were appended."""
        for item, sequence in zip(self._flying, sequences, strict=True):
            self.size -= len(item.payload)
            item.sequence = sequence
            if item.back_at is None:
                self._not_back[item.counter] = item
            self._sent.append(item)
        self._flying = []
        while len(self._sent) > self._keep_limit:
            self._not_back.pop(self._sent.popleft().counter, None)

    def failed(self) -> None:
        """Queue the payloads taken again: whether they were appended is not known."""
        self.repeated += len(self._flying)
        self._waiting.extendleft(reversed(self._flying))
        self._flying = []

    def came_back(self, counter: int, now: float) -> None:
        """Note that a payload was read back."""
        item = self._not_back.pop(counter, None) or self._flying_item(counter)
        if item is not None:
            item.back_at = now
        while self._sent:
            back_at = self._sent[0].back_at
            if back_at is None or now - back_at < self._keep:
                return
            self._sent.popleft()

    def missing(self, sequence: int) -> bool:
        """Tell whether a reader that is past `sequence` should have met more than came back."""
        return any(item.sequence <= sequence for item in self._not_back.values())

    def again(self, *, all_kept: bool) -> None:
        """Queue again, before the rest, what has not come back, or everything that is kept.

        This may pass the limits by what is kept.
        """
        again = [item for item in self._sent if all_kept or item.back_at is None]
        self._sent = deque(item for item in self._sent if item.back_at is not None and not all_kept)
        self._not_back.clear()
        self.repeated += len(again)
        self._waiting.extendleft(reversed(again))
        self.size += sum(len(item.payload) for item in again)

    def _flying_item(self, counter: int) -> Item | None:
        # A payload can be read back before the answer to its `XADD` is.
        return next((item for item in self._flying if item.counter == counter), None)
