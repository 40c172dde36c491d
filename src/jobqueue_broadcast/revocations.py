"""Which credentials are no longer good although they have not expired.

A revocation names a principal and a time: credentials issued up to then are refused. One that does
not say when it was issued is refused until the revocation is undone.
"""

from __future__ import annotations

from collections import OrderedDict

from jobqueue_broadcast.auth import Principal

__all__ = ["Revocations"]


class Revocations:
    """The revocations still to be held against credentials.

    What is let go of, for its age or because there are too many, is not forgotten altogether: from
    then on *every* credential issued up to that time is refused, whoever it belongs to, so that
    none that was revoked comes back. Only a credential without a time of issue does.

    Args:
        retention: Seconds a revocation is kept by name; longer than the longest lifetime of a
            token, no other principal ever notices.
        limit: How many are kept by name; the oldest goes first.
    """

    __slots__ = ("_floor", "_limit", "_retention_ms", "_revoked")

    def __init__(self, retention: float, limit: int) -> None:
        self._retention_ms = retention * 1000
        self._limit = limit
        self._revoked: OrderedDict[str, int] = OrderedDict()
        self._floor = -1

    def __len__(self) -> int:
        return len(self._revoked)

    def revoke(self, principal_id: str, at: int) -> None:
        """Refuse the credentials of a principal issued up to a time.

        Args:
            principal_id: Whose.
            at: Unix time in milliseconds.
        """
        # Nodes' clocks differ: an earlier time than the one noted changes nothing.
        self._revoked[principal_id] = max(at, self._revoked.get(principal_id, at))
        self._revoked.move_to_end(principal_id)
        while len(self._revoked) > self._limit:
            self._let_go()

    def unrevoke(self, principal_id: str) -> None:
        """Refuse a principal's credentials no more, if they were."""
        self._revoked.pop(principal_id, None)

    def expire(self, now: int) -> None:
        """Let go of what is older than the retention."""
        while self._revoked and next(iter(self._revoked.values())) + self._retention_ms <= now:
            self._let_go()

    def is_revoked(self, principal: Principal) -> bool:
        """Tell whether a principal's credential is to be refused."""
        at = self._revoked.get(principal.id)
        if principal.issued_at is None:
            return at is not None
        return principal.issued_at * 1000 <= max(self._floor, -1 if at is None else at)

    def _let_go(self) -> None:
        _, at = self._revoked.popitem(last=False)
        self._floor = max(self._floor, at)
