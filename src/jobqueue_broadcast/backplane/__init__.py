"""What puts all events into one order: the Protocol of a backplane, and the in-process one.

A backplane takes payloads and gives each back, with its sequence, in one total order. A node
delivers what it is given back, its own events included, so all nodes agree on the order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import uuid4

__all__ = ["Backplane", "InProcessBackplane", "Receiver"]


class Receiver(Protocol):
    """The broadcaster's side of a backplane. Not to be called from another thread."""

    def receive(self, sequence: int, payload: bytes) -> None:
        """Take the next payload; sequences strictly grow within an epoch."""
        ...

    def restart(self, epoch: str, head: int) -> None:
        """Take note that another sequence begins: what follows does not continue what was."""
        ...


class Backplane(Protocol):
    """An ordered log shared by all nodes."""

    def attach(self, receiver: Receiver) -> None:
        """Give back payloads to this receiver from now on; announce the epoch with `restart`."""
        ...

    def publish(self, payload: bytes) -> None:
        """Append a payload; return at once, without waiting for it to come back.

        Raises:
            BackplaneFull: The bounded queue of payloads not yet published is full.
        """
        ...


class InProcessBackplane:
    """The order of one process: each payload comes back before `publish` returns.

    Args:
        epoch: Names the sequence; by default a name no other process has.
    """

    def __init__(self, epoch: str | None = None) -> None:
        self._epoch = epoch or uuid4().hex[:16]
        self._sequence = 0
        self._receive: Callable[[int, bytes], None] | None = None

    def attach(self, receiver: Receiver) -> None:
        """Give back payloads to this receiver."""
        self._receive = receiver.receive
        receiver.restart(self._epoch, self._sequence)

    def publish(self, payload: bytes) -> None:
        """Give the payload back, as the next in order."""
        self._sequence += 1
        if self._receive is not None:
            self._receive(self._sequence, payload)
