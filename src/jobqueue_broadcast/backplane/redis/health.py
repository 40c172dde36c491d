"""How a backplane is doing: what failed and what was counted, told to `on_state` and the log."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Literal, TypeAlias

from msgspec import Struct

from jobqueue_broadcast.backplane.redis._client import plainly
from jobqueue_broadcast.backplane.redis.rounds import Break

__all__ = ["BackplaneState", "Health", "OnState"]

logger = logging.getLogger("jobqueue_broadcast")

_BREAKS: dict[Break, str] = {
    "trimmed": "entries were cut off before they were read",
    "flushed": "the stream was emptied, deleted, or replaced by an older one",
    "epoch": "another node found that the stream does not continue what it was",
}


class BackplaneState(Struct, frozen=True, kw_only=True):
    """What became of the connection to Redis, as told to `on_state` and the log.

    Attributes:
        status: `"ready"`: connected and heard by itself; `"away"`: not; `"gap"`: connected, but
            events were missed, so that the states are built again and all peers told to resync.
        reason: What happened, in words.
    """

    status: Literal["ready", "away", "gap"]
    reason: str


OnState: TypeAlias = Callable[[BackplaneState], object]


class Health:
    """What is wrong with the reader and the writer, if anything, and their figures.

    Args:
        on_state: Called with each change of state.
        retry_limit: Seconds at most between attempts to reconnect.
    """

    def __init__(self, on_state: OnState | None, retry_limit: float) -> None:
        self.faults: dict[str, str] = {"reader": "starting", "writer": "starting"}
        self.breaks: dict[Break, int] = dict.fromkeys(_BREAKS, 0)
        self.outages = 0
        self._on_state = on_state
        self._retry_limit = retry_limit
        self._status: BackplaneState | None = None
        self._became_ready = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    async def wait_ready(self) -> None:
        """Wait until nothing is wrong."""
        while self.faults:
            self._became_ready.clear()
            await self._became_ready.wait()

    def failed(self, part: str, error: BaseException) -> None:
        """Note that an exchange with Redis failed."""
        if self.ready:
            self.outages += 1
        reason = self.faults[part] = f"{part}: {plainly(error)}"
        if self._status is None or self._status.status != "away":
            self._tell(BackplaneState(status="away", reason=reason))

    def broken(self, why: Break) -> None:
        """Note that the reader lost continuity."""
        self.breaks[why] += 1
        self.faults["reader"] = _BREAKS[why]
        self._tell(BackplaneState(status="gap", reason=_BREAKS[why]))

    def succeeded(self, part: str) -> None:
        """Note that an exchange with Redis went well."""
        if self.faults.pop(part, None) is not None and self.ready:
            self._became_ready.set()
            self._tell(BackplaneState(status="ready", reason="connected"))

    async def pause(self, attempt: int) -> None:
        """Wait before connecting again; longer each time, and not all nodes at once."""
        most = min(self._retry_limit, 0.05 * 2 ** min(attempt, 10))
        await asyncio.sleep(most * random.random())  # noqa: S311 - it spreads load, no secret

    def _tell(self, state: BackplaneState) -> None:
        self._status = state
        level = logging.INFO if state.status == "ready" else logging.WARNING
        logger.log(level, "backplane %s: %s", state.status, state.reason)
        if self._on_state is None:
            return
        try:
            self._on_state(state)
        except Exception:
            logger.exception("on_state failed")
