"""What every backplane must do, as plain functions: run them over one of your own.

::

    async def test_mine():
        await check_backplane(lambda: MyBackplane("…", prefix=uuid4().hex))

Each check makes backplanes that share one log, gives them receivers, and raises `AssertionError`
where the contract of `jobqueue_broadcast.backplane` is not held. Needs no test framework.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.lowlevel

from jobqueue_broadcast.backplane import Backplane, RemoteBackplane
from jobqueue_broadcast.errors import BackplaneFull

__all__ = ["CHECKS", "RecordingReceiver", "check_backplane"]

_PATIENCE = 30.0


class RecordingReceiver:
    """A receiver that keeps what it is given.

    Attributes:
        epoch: The last epoch announced; empty before.
        received: Sequences and payloads of the epoch, in order, replayed ones included.
        live: Payloads that were given as news, in order.
        resyncs: Why peers were told to resync.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.head = 0
        self.received: list[tuple[int, bytes]] = []
        self.live: list[bytes] = []
        self.resyncs: list[str] = []
        self.faults: list[str] = []

    @property
    def payloads(self) -> list[bytes]:
        """The payloads of the epoch, in order."""
        return [payload for _, payload in self.received]

    def receive(self, sequence: int, payload: bytes) -> None:
        """Keep a payload."""
        self.replay(sequence, payload)
        self.live.append(payload)

    def replay(self, sequence: int, payload: bytes) -> None:
        """Keep a payload of before."""
        last = self.received[-1][0] if self.received else self.head
        if not self.epoch:
            self.faults.append("a payload was given before an epoch was announced")
        if sequence <= last:
            self.faults.append(f"sequence {sequence} was given after {last}")
        self.received.append((sequence, payload))

    def restart(self, epoch: str, head: int) -> None:
        """Begin another sequence."""
        self.epoch, self.head = epoch, head
        self.received.clear()

    def unfinished(self) -> list[str]:
        """Return no jobs."""
        return []

    def recall(self, payload: bytes) -> None:
        """Do nothing: there are no states here."""

    def resync(self, reason: str) -> None:
        """Keep the reason."""
        self.resyncs.append(reason)


class _Node:
    def __init__(self, backplane: Backplane) -> None:
        self.backplane = backplane
        self.receiver = RecordingReceiver()
        backplane.attach(self.receiver)


Make = Callable[[], Backplane]
"""Makes a backplane; all those made by one function share one log, if they are not in-process."""


@asynccontextmanager
async def _running(make: Make) -> AsyncGenerator[_Node, None]:
    """A node whose backplane runs and is ready."""
    node = _Node(make())
    if not isinstance(node.backplane, RemoteBackplane):
        yield node
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(node.backplane.run)
        with anyio.fail_after(_PATIENCE):
            await node.backplane.wait_ready()
        yield node
        tasks.cancel_scope.cancel()


async def _until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(_PATIENCE):
        while not condition():  # noqa: ASYNC110 - receivers are told nothing of events
            await anyio.sleep(0.005)


def _payload(number: int, name: str = "job") -> bytes:
    return (
        b'{"type":"update_job_progress","timestamp":1,"job_id":"%b-%d","worker_id":"w","progress":0.5}'
        % (name.encode(), number)
    )


def _check(node: _Node) -> None:
    faults = node.receiver.faults
    if faults:
        raise AssertionError(faults[0])


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(f"expected {what}")


async def check_epoch_is_announced(make: Make) -> None:
    """The epoch is announced before the first payload, and names one sequence."""
    async with _running(make) as node:
        await _until(lambda: node.receiver.epoch != "")
        epoch = node.receiver.epoch
        _expect(1 <= len(epoch) <= 64 and epoch.replace("-", "").replace("_", "").isalnum(),
                f"an epoch of 1 to 64 characters of A-Z a-z 0-9 _ -, got {epoch!r}")  # fmt: skip


async def check_payloads_come_back_in_order(make: Make) -> None:
    """Each payload comes back once, as it was, in the order of `publish`; sequences grow."""
    async with _running(make) as node:
        wanted = [_payload(number) for number in range(1000)]
        for payload in wanted:
            node.backplane.publish(payload)
        await _until(lambda: len(node.receiver.live) >= len(wanted))
        _expect(node.receiver.live == wanted, "the payloads in the order of publish, once each")
        digits = len(str(node.receiver.received[-1][0]))
        _expect(digits <= 40, f"sequences of at most 40 digits, got {digits}")
        _check(node)


async def check_publishing_from_within_receive(make: Make) -> None:
    """A receiver may publish while it is given a payload."""
    async with _running(make) as node:
        receive = node.receiver.receive

        def answer(sequence: int, payload: bytes) -> None:
            receive(sequence, payload)
            if payload == _payload(1):
                node.backplane.publish(_payload(2))

        node.receiver.receive = answer  # type: ignore[method-assign]
        node.backplane.attach(node.receiver)
        node.backplane.publish(_payload(1))
        await _until(lambda: len(node.receiver.live) == 2)
        _expect(node.receiver.live == [_payload(1), _payload(2)], "both payloads")


async def check_nodes_agree(make: Make) -> None:
    """All nodes are given all payloads, with the same sequences, in the same order."""
    if not isinstance(make(), RemoteBackplane):
        return
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(_running(make)) for _ in range(3)]
        for number in range(200):
            for at, node in enumerate(nodes):
                node.backplane.publish(_payload(number, f"node{at}"))
            if number % 10 == 0:
                await anyio.lowlevel.checkpoint()
        await _until(lambda: all(len(node.receiver.live) >= 600 for node in nodes))
        first = nodes[0].receiver
        for node in nodes:
            _check(node)
            _expect(node.receiver.epoch == first.epoch, "one epoch on all nodes")
            _expect(node.receiver.received[-600:] == first.received[-600:], "one order")
        for at in range(3):
            own = [p for p in first.live if b"node%d-" % at in p]
            _expect(own == [_payload(n, f"node{at}") for n in range(200)], "each node's own order")


async def check_the_past_is_replayed(make: Make) -> None:
    """A node that starts is given what is retained, as past, and then the rest, as news."""
    if not isinstance(make(), RemoteBackplane):
        return
    async with _running(make) as one:
        for number in range(50):
            one.backplane.publish(_payload(number))
        await _until(lambda: len(one.receiver.live) == 50)
        async with _running(make) as two:
            _expect(two.receiver.live == [], "nothing old to be news")
            _expect(two.receiver.payloads == one.receiver.payloads, "the past of the other node")
            one.backplane.publish(_payload(50))
            await _until(lambda: len(two.receiver.live) == 1)
            _expect(two.receiver.received == one.receiver.received, "the same sequences")
            _check(two)


async def check_a_node_can_be_waited_for(make: Make) -> None:
    """`reach` returns once everything up to a sequence was received, or says that it was not."""
    if not isinstance(make(), RemoteBackplane):
        return
    async with _running(make) as one, _running(make) as two:
        one.backplane.publish(_payload(1))
        await _until(lambda: one.receiver.live != [])
        sequence = one.receiver.received[-1][0]
        if not isinstance(two.backplane, RemoteBackplane):
            return
        _expect(await two.backplane.reach(sequence, within=_PATIENCE), "to get there")
        _expect(two.receiver.received[-1][0] == sequence, "the payload to be there")
        _expect(not await two.backplane.reach(sequence + 1, within=0.01), "not to get further")
        _expect(await two.backplane.flush(), "nothing left to publish")


async def check_publishing_is_bounded(make: Make) -> None:
    """A backplane that is away takes no more than it has room for, and then says so."""
    backplane = make()
    if not isinstance(backplane, RemoteBackplane):
        return
    backplane.attach(RecordingReceiver())
    big = b'{"type":"x","y":"' + b"y" * 65536 + b'"}'
    try:
        for _ in range(100_000):
            backplane.publish(big)
    except BackplaneFull:
        return
    raise AssertionError("expected BackplaneFull before 6 GB wait to be published")


CHECKS: tuple[Callable[[Make], Awaitable[None]], ...] = (
    check_epoch_is_announced,
    check_payloads_come_back_in_order,
    check_publishing_from_within_receive,
    check_nodes_agree,
    check_the_past_is_replayed,
    check_a_node_can_be_waited_for,
    check_publishing_is_bounded,
)


async def check_backplane(make: Callable[[str], Backplane]) -> None:
    """Run every check.

    Args:
        make: Makes a backplane on the log of the given name; those with one name share it, and a
            name not used before is an empty log.

    Raises:
        AssertionError: The contract is not held; the message says what was expected.
    """
    for check in CHECKS:
        await check(lambda name=check.__name__: make(name))  # type: ignore[misc]
