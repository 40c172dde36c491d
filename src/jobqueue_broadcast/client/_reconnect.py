"""Whether and when a peer connects again: backoff with full jitter, close codes, HTTP statuses.

Pure: the random source and the clock are given. The rules are the wire protocol's sections 1 and 5.
"""

from __future__ import annotations

import random as _random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from msgspec import Struct

from jobqueue_broadcast.errors import CloseCode, ConnectionEnded, ConnectRefused, InvalidArgument

__all__ = ["Backoff", "Reconnect", "seconds_of_retry_after"]

# Beside the codes of this library: 1002, 1008 and 1010 say that this side did wrong, and would
# again. Everything else (1000 and 1005 of a proxy, 1006, 1011 to 1014, codes to come) may pass.
_FINAL = frozenset(code for code in CloseCode if not code.reconnect) | {1002, 1008, 1010}

# Statuses of proxies and of a full server, that another attempt may not meet.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})

# However long a server asks for, it is asked again within the hour.
_LONGEST_RETRY_AFTER = 3600.0


class Backoff(Struct, frozen=True, kw_only=True):
    """How long to wait before connecting again: random in [0, min(cap, base * 2**n)] seconds.

    The whole interval is random ("full jitter"), so that a thousand peers that lost the same
    server do not come back in the same moment.

    Args:
        base: Seconds, the most for the first attempt after a connection was lost.
        cap: Seconds, the most for any attempt.
        stable_after: Seconds a connection must have lasted for the next loss to count as the first.

    Raises:
        InvalidArgument: A negative number, or a `cap` below `base`.
    """

    base: float = 0.5
    cap: float = 30.0
    stable_after: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.base <= self.cap and self.stable_after >= 0):
            raise InvalidArgument(
                f"Backoff: expected 0 <= base <= cap and stable_after >= 0, got {self!r}"
            )


class Reconnect:
    """The decisions of one peer; each returns the seconds to wait, or raises to give up.

    Args:
        backoff: The intervals.
        clock: Seconds that never go back.
        random: Random numbers in [0, 1).
    """

    def __init__(
        self,
        backoff: Backoff,
        clock: Callable[[], float],
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._backoff = backoff
        self._clock = clock
        self._random = random
        self._attempts = 0
        self._opened_at: float | None = None
        self._renewals = 0

    def opened(self) -> None:
        """Note that the server greeted."""
        self._opened_at = self._clock()

    def failed(self) -> float:
        """Decide after a network error, or a connection that broke without a close frame."""
        return self._delay()

    def refused(self, status: int, reason: str, retry_after: str | None = None) -> float:
        """Decide after an HTTP answer in place of the upgrade.

        Raises:
            ConnectRefused: Another attempt would be answered the same.
        """
        if status not in _TRANSIENT:
            raise ConnectRefused(status, reason)
        return self._delay(seconds_of_retry_after(retry_after))

    def closed(self, code: int, reason: str) -> float:
        """Decide after a closed connection.

        Raises:
            ConnectionEnded: The code says "do not reconnect"; or 4401 came a second time before
                a connection lasted, so that new credentials do not help.
        """
        delay = self._delay(1.0 if code == CloseCode.TOO_MANY_COMMANDS else 0.0)
        if code == CloseCode.UNAUTHENTICATED:
            self._renewals += 1
            if self._renewals > 1:
                raise ConnectionEnded(code, reason)
        elif code in _FINAL:
            raise ConnectionEnded(code, reason)
        return delay

    def _delay(self, at_least: float = 0.0) -> float:
        """Return the next wait; the jitter comes on top of what the server asked for."""
        opened_at, self._opened_at = self._opened_at, None
        if opened_at is not None and self._clock() - opened_at >= self._backoff.stable_after:
            self._attempts = self._renewals = 0
        # 2**30 is beyond any cap, and larger powers would end in an overflow.
        most = min(self._backoff.cap, self._backoff.base * 2.0 ** min(self._attempts, 30))
        self._attempts += 1
        return at_least + self._random() * most


def seconds_of_retry_after(value: str | None, now: datetime | None = None) -> float:
    """Return the seconds a `Retry-After` header asks for (RFC 9110, 10.2.3); 0 for nonsense."""
    if value is None:
        return 0.0
    text = value.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:9])
    else:
        try:
            then = parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return 0.0
        if then.tzinfo is None:
            then = then.replace(tzinfo=UTC)
        seconds = (then - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)
