"""How many commands a peer may send: a token bucket over the broadcaster's clock."""

from __future__ import annotations

from jobqueue_broadcast.clock import Clock

__all__ = ["TokenBucket"]


class TokenBucket:
    """Allows `burst` at once and `rate` per second in the long run.

    Args:
        clock: What time is measured by.
        rate: Tokens gained per second.
        burst: Tokens held at most, and at the beginning.
    """

    __slots__ = ("_clock", "_then", "_tokens", "burst", "rate", "refused")

    def __init__(self, clock: Clock, rate: float, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self.refused = 0
        """How often in a row `take` was refused."""
        self._clock = clock
        self._tokens = float(burst)
        self._then = clock.monotonic()

    def take(self) -> bool:
        """Take one token, if there is one."""
        now = self._clock.monotonic()
        self._tokens = min(self.burst, self._tokens + (now - self._then) * self.rate)
        self._then = now
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        self.refused = 0
        return True
