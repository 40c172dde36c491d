"""Whose an id is over all nodes, and what a client followed on the node it was on before.

Only with a backplane that other processes share. It numbers the connections of an id, over all
nodes, in the order they ask for it: of two of the same principal the one with the higher number
has the id, whichever was registered first, and every node closes those with a lower one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

from msgspec import Struct

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.backplane import Claim, RemoteBackplane
from jobqueue_broadcast.control import PeerReplaced
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import BackplaneError, IdTaken, Replaced
from jobqueue_broadcast.handshake import Kind

__all__ = ["Claims", "Grant"]

logger = logging.getLogger("jobqueue_broadcast")

_HOLD_EVERY = 60.0
_LEFT_LIMIT = 100_000


class _Arriving:
    """What those who ask for one id here must know: the newest connection that has it.

    Made before the backplane is asked, so that nothing that happens meanwhile is missed, and gone
    with the last of them.
    """

    __slots__ = ("__weakref__", "newest")

    def __init__(self) -> None:
        self.newest = 0

    def has(self, number: int) -> None:
        self.newest = max(self.newest, number)


class Grant(Struct, frozen=True, eq=False):
    """An id that all nodes agreed to give a connection: from `prepare`, for `add_…`."""

    kind: Kind
    id: str
    principal_id: str
    claim: Claim
    arriving: _Arriving

    def jobs(self) -> dict[str, tuple[int, int]] | None:
        """Return a client's subscriptions as all nodes know them; `None`: they know of none."""
        return self.claim.jobs if self.claim.known else None

    def check(self) -> None:
        """Raise `Replaced` when a newer connection has the id by now."""
        if self.claim.number < self.arriving.newest:
            raise Replaced(f"a newer connection has the {self.kind} id {self.id!r}")


class Claims:
    """The ids this node's connections have, as all nodes see it.

    Args:
        remote: What all nodes share.
        publish: Publishes that a connection was replaced.
        retention: Seconds a client's id and subscriptions outlive its connection.
    """

    def __init__(
        self,
        remote: RemoteBackplane,
        publish: Callable[[PeerReplaced], None],
        retention: float,
    ) -> None:
        self._remote = remote
        self._publish = publish
        self._retention = retention
        self._arriving: WeakValueDictionary[tuple[Kind, str], _Arriving] = WeakValueDictionary()
        self._held: OrderedDict[Subscriber, tuple[int, float]] = OrderedDict()
        self._left: OrderedDict[tuple[Kind, str], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    async def claim(self, kind: Kind, peer_id: str, principal: Principal) -> Grant | None:
        """Ask all nodes for an id, before its connection is registered.

        Where they cannot be asked, this node decides alone: `None`.

        Raises:
            IdTaken: The id belongs to another principal.
        """
        arriving = self._arriving.setdefault((kind, peer_id), _Arriving())
        try:
            claim = await self._remote.claim(kind, peer_id, principal.id)
        except BackplaneError as error:
            logger.warning("%s id %r is checked on this node only: %s", kind, peer_id, error)
            return None
        if claim.owner != principal.id:
            raise IdTaken(f"{kind} id {peer_id!r} belongs to another principal")
        return Grant(kind, peer_id, principal.id, claim, arriving)

    def connected(self, subscriber: Subscriber, grant: Grant, now: float) -> None:
        """Note that a connection is registered under what it was granted."""
        claim = grant.claim
        grant.arriving.has(claim.number)
        self._held[subscriber] = (claim.number, now)
        left = self._left.pop((subscriber.kind, subscriber.id), 0)
        if claim.previous not in (0, left):
            self._publish(PeerReplaced(kind=subscriber.kind, id=subscriber.id, number=claim.number))

    def is_replaced(self, message: PeerReplaced, subscriber: Subscriber | None) -> bool:
        """Tell whether this connection is an older one than the message's."""
        arriving = self._arriving.get((message.kind, message.id))
        if arriving is not None:
            arriving.has(message.number)
        if subscriber is None:
            return False
        # One that was let in while the nodes could not be asked has no number: it is older.
        number, _ = self._held.get(subscriber, (0, 0.0))
        return number < message.number

    def has_moved(self, message: PeerReplaced) -> bool:
        """Tell whether a peer that left this node is elsewhere: it is no longer expected back."""
        key = (message.kind, message.id)
        if key not in self._left or self._left[key] >= message.number:
            return False
        del self._left[key]
        return True

    def lost(self, subscriber: Subscriber) -> None:
        """Note that a connection is gone."""
        if subscriber not in self._held:
            return
        number, _ = self._held.pop(subscriber)
        key = (subscriber.kind, subscriber.id)
        self._left[key] = number
        self._left.move_to_end(key)
        while len(self._left) > _LEFT_LIMIT:
            self._left.popitem(last=False)
        retention = self._retention if subscriber.kind == "client" else 0.0
        self._remote.release(subscriber.kind, subscriber.id, number, retention)

    def tick(self, now: float) -> None:
        """Say again of each connection, once a minute, that it is there."""
        while self._held:
            subscriber, (number, said) = next(iter(self._held.items()))
            if now - said < _HOLD_EVERY:
                return
            self._held[subscriber] = (number, now)
            self._held.move_to_end(subscriber)
            owner = subscriber.principal.id
            self._remote.hold(subscriber.kind, subscriber.id, owner, number)
