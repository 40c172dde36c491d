"""Whose an id is over all nodes, and what a client followed on the node it was on before.

Only with a backplane that other processes share. A connection has a name of its own there: where
the same principal connects again, on whichever node, the node of the older connection is told that
name, and closes it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from uuid import uuid4

from msgspec import Struct

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.backplane import Claim, RemoteBackplane
from jobqueue_broadcast.control import PeerReplaced
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import BackplaneError, IdTaken
from jobqueue_broadcast.handshake import Kind

__all__ = ["Claims"]

logger = logging.getLogger("jobqueue_broadcast")

_HOLD_EVERY = 60.0
_PENDING_LIMIT = 10_000
_LEFT_LIMIT = 100_000


class _Pending(Struct):
    """An id that was granted to a connection that is not registered yet."""

    connection: str
    claim: Claim
    replaced: bool = False


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
        self._pending: OrderedDict[tuple[str, str], _Pending] = OrderedDict()
        self._held: OrderedDict[Subscriber, tuple[str, float]] = OrderedDict()
        self._left: OrderedDict[tuple[str, str], str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    async def claim(self, kind: Kind, peer_id: str, principal: Principal) -> None:
        """Ask all nodes for an id, before its connection is registered.

        Where they cannot be asked, this node decides alone.

        Raises:
            IdTaken: The id belongs to another principal.
        """
        # What an earlier handshake was granted and did not use is not this principal's to inherit.
        self._pending.pop((kind, peer_id), None)
        connection = uuid4().hex[:16]
        try:
            claim = await self._remote.claim(kind, peer_id, principal.id, connection)
        except BackplaneError as error:
            logger.warning("%s id %r is checked on this node only: %s", kind, peer_id, error)
            return
        if claim.owner != principal.id:
            raise IdTaken(f"{kind} id {peer_id!r} belongs to another principal")
        self._pending[kind, peer_id] = _Pending(connection, claim)
        while len(self._pending) > _PENDING_LIMIT:
            self._pending.popitem(last=False)

    def jobs_of(self, client_id: str, principal: Principal) -> dict[str, tuple[int, int]] | None:
        """Return a client's subscriptions as all nodes know them; `None`: they know of none."""
        pending = self._pending.get(("client", client_id))
        if pending is None or not pending.claim.known or pending.claim.owner != principal.id:
            return None
        return pending.claim.jobs

    def connected(self, subscriber: Subscriber, now: float) -> bool:
        """Note that the connection is registered; return whether it was replaced already."""
        pending = self._pending.pop((subscriber.kind, subscriber.id), None)
        if pending is None or pending.claim.owner != subscriber.principal.id:
            return False
        self._held[subscriber] = (pending.connection, now)
        left = self._left.pop((subscriber.kind, subscriber.id), "")
        if pending.claim.previous != left:
            self._publish(
                PeerReplaced(
                    kind=subscriber.kind, id=subscriber.id, connection=pending.claim.previous
                )
            )
        return pending.replaced

    def is_replaced(self, message: PeerReplaced, subscriber: Subscriber | None) -> bool:
        """Tell whether it is this connection that was replaced on another node."""
        pending = self._pending.get((message.kind, message.id))
        if pending is not None and pending.connection == message.connection:
            pending.replaced = True
        return subscriber is not None and self._name_of(subscriber) == message.connection

    def has_moved(self, message: PeerReplaced) -> bool:
        """Tell whether a peer that left this node was meant: it is no longer expected back here."""
        key = (message.kind, message.id)
        if self._left.get(key) != message.connection:
            return False
        del self._left[key]
        return True

    def lost(self, subscriber: Subscriber) -> None:
        """Note that a connection is gone."""
        connection = self._name_of(subscriber)
        if connection is not None:
            del self._held[subscriber]
            retention = self._retention if subscriber.kind == "client" else 0.0
            self._left[subscriber.kind, subscriber.id] = connection
            while len(self._left) > _LEFT_LIMIT:
                self._left.popitem(last=False)
            self._remote.release(subscriber.kind, subscriber.id, connection, retention)

    def tick(self, now: float) -> None:
        """Say again of each connection, once a minute, that it is there."""
        while self._held:
            subscriber, (connection, said) = next(iter(self._held.items()))
            if now - said < _HOLD_EVERY:
                return
            self._held[subscriber] = (connection, now)
            self._held.move_to_end(subscriber)
            owner = subscriber.principal.id
            self._remote.hold(subscriber.kind, subscriber.id, owner, connection)

    def _name_of(self, subscriber: Subscriber) -> str | None:
        held = self._held.get(subscriber)
        return None if held is None else held[0]
