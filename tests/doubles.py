"""Stand-ins for what the core meets: backplanes moved by hand, beside those that are published."""

from typing import Any
from unittest.mock import create_autospec

import pytest

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.backplane import Claim, Receiver, RemoteBackplane
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.errors import BackplaneFull
from jobqueue_broadcast.testing import BrokenConnection, HandLoop, ManualClock, SlowConnection

__all__ = ["BrokenConnection", "HandLoop", "LogBackplane", "SharedIds", "SlowConnection"]

_ALICE = Principal(id="alice")


class LogBackplane:
    """Keeps what is published until the test gives it back, to every node, in one order."""

    def __init__(self) -> None:
        self.receivers: list[Receiver] = []
        self.published: list[bytes] = []
        self.sequence = 0
        self.full = False

    def attach(self, receiver: Receiver) -> None:
        self.receivers.append(receiver)
        receiver.restart("log", 0)

    def publish(self, payload: bytes) -> None:
        if self.full:
            raise BackplaneFull("full")
        self.published.append(bytes(payload))

    def give_back(self) -> None:
        published, self.published = self.published, []
        for payload in published:
            self.sequence += 1
            for receiver in self.receivers:
                receiver.receive(self.sequence, payload)


class SharedIds:
    """One node, and what all nodes know of ids: a backplane outside this process, by hand."""

    def __init__(self) -> None:
        self.log = LogBackplane()
        self.claim = Claim(owner="alice")
        self.remote = create_autospec(RemoteBackplane, instance=True)
        self.remote.attach.side_effect = self.log.attach
        self.remote.publish.side_effect = self.log.publish
        self.remote.claim = self.answer
        self.remote.reach = self.answer
        self.clock = ManualClock()
        self.broadcaster = EventBroadcaster(clock=self.clock, backplane=self.remote)

    async def answer(self, *_: Any) -> Any:
        return self.claim

    def prepare(self, kind: Any, resume: Any = None, principal: Principal = _ALICE) -> None:
        """Await what a peer `p` waits for before it is registered."""
        with pytest.raises(StopIteration):
            self.broadcaster.prepare(kind, "p", principal, resume).send(None)

    def connection(self, number: int = 0) -> str:
        """The name under which a connection of this node asked to be remembered."""
        return str(self.remote.hold.call_args_list[number].args[-1])
