"""What a monitor received and its caller has not read yet: bounded, in order, nothing dropped."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Generic, TypeVar

from anyio.lowlevel import checkpoint_if_cancelled

from jobqueue_broadcast.client._lane import raised_again
from jobqueue_broadcast.client._signal import Signal

__all__ = ["Buffer"]

T = TypeVar("T")


class Buffer(Generic[T]):
    """Holds up the one who puts while it is full, unless somebody waits for an answer beyond it.

    Args:
        limit: How many items.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        self._taken = Signal()
        self._added = Signal()
        self._waived = 0
        self._failure: Exception | None = None

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: T) -> None:
        """Add an item, once there is room."""
        while len(self._items) >= self._limit and not self._waived:
            await self._taken.wait()
        self._items.append(item)
        self._added.notify()

    async def get(self) -> T:
        """Remove the oldest item, once there is one.

        Raises:
            Exception: Nothing is left, and nothing will come, for this reason.
        """
        await checkpoint_if_cancelled()
        while not self._items:
            if self._failure is not None:
                raise raised_again(self._failure)
            await self._added.wait()
        item = self._items.popleft()
        self._taken.notify()
        return item

    @contextmanager
    def waived(self) -> Generator[None]:
        """Suspend the limit while the caller waits for an answer.

        The answer comes after the events that were sent before it. A caller that asks instead of
        reading would else wait for ever.
        """
        self._waived += 1
        self._taken.notify()
        try:
            yield
        finally:
            self._waived -= 1

    def fail(self, error: Exception) -> None:
        """Raise this once everything is read."""
        if self._failure is None:
            self._failure = error
        self._added.notify()
