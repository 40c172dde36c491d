"""What puts all events into one order: the Protocol of a backplane, and the in-process one.

A backplane takes payloads and gives each back, with its sequence, in one total order. A node
delivers what it is given back, its own events included, so all nodes agree on the order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable
from uuid import uuid4

from msgspec import Struct

__all__ = ["Backplane", "Claim", "InProcessBackplane", "Receiver", "RemoteBackplane"]


class Receiver(Protocol):
    """The broadcaster's side of a backplane. Not to be called from another thread."""

    def receive(self, sequence: int, payload: bytes) -> None:
        """Take the next payload; sequences strictly grow within an epoch."""
        ...

    def restart(self, epoch: str, head: int) -> None:
        """Take note that another sequence begins: what follows does not continue what was."""
        ...

    # What follows is for backplanes that remember more than this node has seen.

    def replay(self, sequence: int, payload: bytes) -> None:
        """Take the next payload, but send it to nobody: it is from before, or was sent already."""
        ...

    def unfinished(self) -> list[str]:
        """Return the jobs that have not ended, as far as is known here."""
        ...

    def recall(self, payload: bytes) -> None:
        """Take a payload into the states alone: it is kept beside the sequence, for its job."""
        ...

    def resync(self, reason: Literal["epoch", "trimmed"]) -> None:
        """Tell every peer that events were missed here, and send it the state as it is now."""
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


class Claim(Struct, frozen=True, kw_only=True):
    """What a backplane says to a connection that asks for an id.

    Attributes:
        owner: The principal to whom the id belongs on all nodes: the one who asked, or another.
        known: Whether it belonged to the principal before.
        number: This connection's: higher than that of each that asked for the id before.
        previous: That of the connection that had it last, there or not; 0 where there was none.
        jobs: A client's subscriptions, each with the sequence and state number it began at.
    """

    owner: str
    number: int
    known: bool = False
    previous: int = 0
    jobs: dict[str, tuple[int, int]] = {}


@runtime_checkable
class RemoteBackplane(Backplane, Protocol):
    """A backplane outside this process: to be run, and waited for."""

    @property
    def running(self) -> bool:
        """Whether somebody runs it; an adapter does where nobody else does."""
        ...

    async def run(self) -> None:
        """Read and publish until cancelled."""
        ...

    async def flush(self, within: float = 2.0) -> bool:
        """Wait until everything published has left this process; false when it takes too long."""
        ...

    async def wait_ready(self) -> None:
        """Wait until payloads get through, and the states of before were taken."""
        ...

    async def reach(self, sequence: int, within: float = 2.0) -> bool:
        """Wait until everything up to a sequence was received; false when it takes too long."""
        ...

    async def look_up(self, job_id: str) -> list[bytes]:
        """Return the payloads kept for a job, in order; none when there is no answer in time."""
        ...

    async def claim(self, kind: str, peer_id: str, owner: str) -> Claim:
        """Ask for an id on behalf of a principal, for a new connection.

        Raises:
            BackplaneUnavailable: There is no answer in time.
        """
        ...

    def hold(self, kind: str, peer_id: str, owner: str, number: int) -> None:
        """Say that a connection still has the id; to be said about once a minute."""
        ...

    def release(self, kind: str, peer_id: str, number: int, retention: float) -> None:
        """Give up an id; who had it keeps it, and its subscriptions, for `retention` seconds."""
        ...

    def took(self, sequence: int, seconds: float) -> None:
        """Say that a client took the outcome with this sequence; it is known for so long."""
        ...

    def report(self, sequence: int, seconds: float, call: Callable[[bool], object]) -> None:
        """Ask whether this node is the first, of all, to report that nobody took an outcome.

        `call` is given the answer, on the event loop: false where somebody took it or another node
        reported it, and true also where there is no answer in time. It is known for `seconds`.
        """
        ...

    def keep(self, client_id: str, job_id: str, since: tuple[int, int] | None) -> None:
        """Remember a client's subscription for the node it may come to next; `None`: it ended."""
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
