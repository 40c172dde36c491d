"""A wake-up call between the tasks of one peer, that costs nothing while nobody waits."""

from __future__ import annotations

import anyio

__all__ = ["Signal"]


class Signal:
    """Wakes whoever waits, and is not remembered: check the condition, then `wait`, in a loop."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

    def notify(self) -> None:
        """Wake everyone who waits now."""
        event, self._event = self._event, None
        if event is not None:
            event.set()
