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
        self.claim = Claim(owner="alice", number=10)
        self.remote = create_autospec(RemoteBackplane, instance=True)
        self.remote.attach.side_effect = self.log.attach
        self.remote.publish.side_effect = self.log.publish
        self.remote.claim = self._claimed
        self.remote.reach = self._reached
        self.clock = ManualClock()
        self.broadcaster = EventBroadcaster(clock=self.clock, backplane=self.remote)

    def prepare(self, kind: Any, resume: Any = None, principal: Principal = _ALICE) -> Any:
        """Await what a peer `p` waits for before it is registered; return what it is granted."""
        with pytest.raises(StopIteration) as returned:
            self.broadcaster.prepare(kind, "p", principal, resume).send(None)
        return returned.value.value

    async def _claimed(self, *_: Any) -> Claim:
        return self.claim

    async def _reached(self, *_: Any) -> bool:
        return True
