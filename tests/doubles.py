"""Stand-ins for what the core meets: connections, backplanes and a loop, each moved by hand."""

from collections import deque
from collections.abc import Callable
from typing import Any
from unittest.mock import create_autospec

import msgspec
import pytest

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.backplane import Claim, Receiver, RemoteBackplane
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import BackplaneFull
from jobqueue_broadcast.frames import TextWire, Wire
from jobqueue_broadcast.testing import ManualClock

__all__ = ["BrokenConnection", "HandLoop", "LogBackplane", "SharedIds", "SlowConnection"]

_WIRE = TextWire()
_ALICE = Principal(id="alice")


class HandLoop:
    """An event loop whose turns end when the test says so."""

    def __init__(self) -> None:
        self.scheduled: deque[Callable[[], Any]] = deque()

    def call_soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.scheduled.append(lambda: call(*arguments))

    def run(self) -> int:
        """End the turn; return how many calls were made."""
        calls = 0
        while self.scheduled:
            self.scheduled.popleft()()
            calls += 1
        return calls


class SlowConnection:
    """A connection whose transport has room for so many bytes, and a peer that reads when told.

    Attributes:
        room: Bytes the transport takes before it says that it is full.
        received: What the peer has read, in order.
        buffer: What was written and not yet read.
        closed: The code and reason of `close`, once called.
        aborted: Whether `abort` was called.
        broken: Whether writing raises.
        writes: How many batches were written.
        written_while_paused: Batches written although the core had been told to stop.
    """

    def __init__(self, room: int = 0, wire: Wire = _WIRE) -> None:
        self.room = room
        self.received: list[bytes] = []
        self.buffer: deque[bytes] = deque()
        self.closed: tuple[int, str] | None = None
        self.aborted = False
        self.broken = False
        self.writes = 0
        self.written_while_paused = 0
        self.wire = wire
        self._subscriber: Subscriber | None = None
        self._paused = False

    @property
    def frames(self) -> list[dict[str, Any]]:
        """What the peer has read, decoded."""
        return [msgspec.json.decode(payload) for payload in self.received]

    @property
    def types(self) -> list[str]:
        return [frame["type"] for frame in self.frames]

    def attach(self, subscriber: Subscriber) -> None:
        """Tell this subscriber from now on; at once when the transport is full already."""
        self._subscriber = subscriber
        self._signal()

    def write(self, batch: Any, /) -> None:
        if self.broken:
            raise ConnectionResetError("the peer is gone")
        self.writes += 1
        self.written_while_paused += self._paused
        self.buffer.extend(batch)
        self._signal()

    def backlog(self) -> int:
        return sum(map(len, self.buffer))

    def close(self, code: int, reason: str, /) -> None:
        self.closed = (int(code), reason)

    def abort(self) -> None:
        self.aborted = True
        self.buffer.clear()

    def read(self, most: int = 1_000_000) -> list[bytes]:
        """Let the peer read so many frames."""
        read: list[bytes] = []
        while self.buffer and len(read) < most:
            payload = self.buffer.popleft()
            self.received.append(payload)
            read.append(payload)
            # Resuming may write more, which is read in turn.
            self._signal()
        return read

    def _signal(self) -> None:
        if self._subscriber is None:
            return
        if not self._paused and self.backlog() > self.room:
            self._paused = True
            self._subscriber.pause()
        elif self._paused and self.backlog() <= self.room // 2:
            self._paused = False
            self._subscriber.resume()


class BrokenConnection:
    """A connection each of whose methods raises."""

    wire: Wire = _WIRE

    def __init__(self) -> None:
        self.calls: list[str] = []

    def _raise(self, name: str) -> None:
        self.calls.append(name)
        raise OSError(f"{name} failed")

    def write(self, _batch: Any, /) -> None:
        self._raise("write")

    def backlog(self) -> int:
        self._raise("backlog")
        return 0

    def close(self, _code: int, _reason: str, /) -> None:
        self._raise("close")

    def abort(self) -> None:
        self._raise("abort")


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
