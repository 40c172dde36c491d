"""Whose an id is over all nodes: `Claims` with all that a backplane outside this process answers.

The connections are those of a broadcaster of its own, which asks nobody; or, where two nodes race,
those of two broadcasters on one log.
"""

import gc
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast import claims
from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.backplane import Claim
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.claims import Claims, Grant
from jobqueue_broadcast.control import PeerReplaced
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import BackplaneUnavailable, IdTaken, Replaced
from jobqueue_broadcast.handshake import Kind
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.doubles import LogBackplane, SharedIds

ALICE, BOB = Principal(id="alice"), Principal(id="bob")


class Node:
    """The claims of one node; what all nodes answer is said by the test.

    Attributes:
        answer: What is answered to whoever asks; an error is raised.
        asked: What the nodes were asked: kind, id and principal.
        told: What was published.
    """

    def __init__(self) -> None:
        self.answer: Claim | Exception = Claim(owner="alice", number=1)
        self.asked: list[tuple[str, ...]] = []
        self.told: list[PeerReplaced] = []
        self.remote = SharedIds().remote
        self.remote.claim = self._asked
        self.claims = Claims(self.remote, self.told.append, retention=10)
        self.peers = EventBroadcaster(clock=ManualClock())

    async def _asked(self, *question: str) -> Claim:
        self.asked.append(question)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def claim(
        self,
        kind: Kind = "client",
        peer_id: str = "p",
        principal: Principal = ALICE,
        **answer: Any,
    ) -> Any:
        """Claim an id; return what is granted."""
        if answer:
            self.answer = Claim(owner="alice", **{"number": 1, **answer})
        with pytest.raises(StopIteration) as returned:
            self.claims.claim(kind, peer_id, principal).send(None)
        return returned.value.value

    def peer(self, kind: Kind = "client", peer_id: str = "p") -> Subscriber:
        """A connection, registered but not noted."""
        add = self.peers.add_monitor if kind == "monitor" else self.peers.add_client
        return add(peer_id, RecordingConnection(), principal=ALICE)

    def connect(
        self, kind: Kind = "client", peer_id: str = "p", now: float = 0, **answer: Any
    ) -> Subscriber:
        """Claim an id for a connection and note it; return it."""
        grant = self.claim(kind, peer_id, **answer)
        peer = self.peer(kind, peer_id)
        self.claims.connected(peer, grant, now)
        return peer

    def held(self) -> list[tuple[Any, ...]]:
        """What was said again to be there, since this was last asked."""
        held = [call.args for call in self.remote.hold.call_args_list]
        self.remote.hold.reset_mock()
        return held

    def released(self) -> list[tuple[Any, ...]]:
        return [call.args for call in self.remote.release.call_args_list]


def replaced(number: int, kind: Kind = "client", peer_id: str = "p") -> PeerReplaced:
    return PeerReplaced(kind=kind, id=peer_id, number=number)


# --- asking ---------------------------------------------------------------------------------------


def test_what_is_asked_and_granted() -> None:
    node = Node()
    assert isinstance(node.claim("monitor"), Grant)
    assert isinstance(node.claim("client"), Grant)
    assert node.asked == [("monitor", "p", "alice"), ("client", "p", "alice")]


def test_an_id_of_another_principal_is_refused() -> None:
    node = Node()
    node.answer = Claim(owner="alice", number=1, known=True, jobs={"secret": (1, 0)})
    with pytest.raises(IdTaken, match="client id 'p' belongs to another principal"):
        node.claims.claim("client", "p", BOB).send(None)
    assert len(node.claims) == 0


def test_where_the_nodes_cannot_be_asked_this_one_decides_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node()
    node.answer = BackplaneUnavailable("no answer in time")
    with caplog.at_level(logging.WARNING, "jobqueue_broadcast"):
        assert node.claim() is None
    assert caplog.messages == ["client id 'p' is checked on this node only: no answer in time"]
    # What nobody was asked for is neither said again nor given up, and anybody's is newer.
    peer = node.peer()
    node.claims.tick(1_000)
    assert node.claims.is_replaced(replaced(1), peer)
    node.claims.lost(peer)
    assert (len(node.claims), node.told, node.held(), node.released()) == (0, [], [], [])


def test_what_a_client_followed_is_granted_with_the_id() -> None:
    node = Node()
    assert node.claim(known=False).jobs() is None
    assert node.claim(known=True).jobs() == {}
    assert node.claim(known=True, jobs={"a": (3, 1)}).jobs() == {"a": (3, 1)}


# --- who replaces whom ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["monitor", "client"])
def test_the_node_of_the_older_connection_is_told(kind: Kind) -> None:
    node = Node()
    node.connect(kind, number=5, previous=0)
    assert node.told == []
    node.connect(kind, number=7, previous=6)
    assert node.told == [replaced(7, kind)]


def test_nobody_is_told_of_a_connection_that_was_here() -> None:
    node = Node()
    peer = node.connect(number=1)
    node.claims.lost(peer)
    peer = node.connect(number=2, previous=1)
    assert node.told == []
    # Here, then elsewhere, then here again: that other node still expects it back.
    node.claims.lost(peer)
    node.connect(number=4, previous=3)
    assert node.told == [replaced(4)]
    assert not node.claims.has_moved(replaced(5))


def test_the_newer_connection_has_the_id() -> None:
    node = Node()
    peer = node.connect(number=5)
    other = node.connect("monitor", number=6)
    for message, subscriber, expected in (
        (replaced(4), peer, False),
        (replaced(5), peer, False),
        (replaced(6), peer, True),
        (replaced(6), None, False),
        (replaced(6, "monitor"), other, False),
        (replaced(7, "monitor"), other, True),
    ):
        assert node.claims.is_replaced(message, subscriber) is expected


def test_one_replaced_before_it_is_registered_is_refused_then() -> None:
    node = Node()
    grant = node.claim(number=5)
    for message in (replaced(5), replaced(9, "monitor"), replaced(9, peer_id="q")):
        assert not node.claims.is_replaced(message, None)
        grant.check()
    node.claims.is_replaced(replaced(6), None)
    node.claims.is_replaced(replaced(4), None)
    with pytest.raises(Replaced, match="a newer connection has the client id 'p'"):
        grant.check()


def test_one_overtaken_on_its_own_node_is_refused() -> None:
    node = Node()
    older, newer = node.claim(number=1), node.claim(number=2, previous=1)
    node.claims.connected(node.peer(), newer, 0)
    with pytest.raises(Replaced):
        older.check()
    newer.check()


def test_one_replaced_before_it_was_answered_is_refused_too() -> None:
    node = Node()

    async def meanwhile(*_: str) -> Claim:
        node.claims.is_replaced(replaced(6), None)
        return Claim(owner="alice", number=5)

    node.remote.claim = meanwhile
    with pytest.raises(Replaced):
        node.claim().check()


def test_nothing_is_kept_for_a_handshake_that_came_to_nothing() -> None:
    node = Node()
    grants = [node.claim(peer_id=f"p{number}") for number in range(3)]
    assert len(node.claims._arriving) == 3
    grants.clear()
    gc.collect()
    assert len(node.claims._arriving) == 0


def test_who_left_this_node_has_moved_once_it_is_told_so() -> None:
    node = Node()
    peer = node.connect(number=5)
    assert not node.claims.has_moved(replaced(6))
    node.claims.lost(peer)
    assert not node.claims.has_moved(replaced(5))
    assert not node.claims.has_moved(replaced(6, "monitor"))
    assert node.claims.has_moved(replaced(6))
    assert not node.claims.has_moved(replaced(6))


# --- holding and giving up ------------------------------------------------------------------------


def test_an_id_is_given_up_once_and_a_clients_is_kept_for_it() -> None:
    node = Node()
    client = node.connect("client", number=1)
    monitor = node.connect("monitor", number=2)
    assert len(node.claims) == 2
    for peer in (client, monitor, client):
        node.claims.lost(peer)
    assert node.released() == [("client", "p", 1, 10), ("monitor", "p", 2, 0.0)]
    assert len(node.claims) == 0


def test_each_connection_is_said_again_once_a_minute() -> None:
    node = Node()
    node.claims.tick(0)
    node.connect(peer_id="one", now=0, number=1)
    two = node.connect("monitor", "two", now=30, number=2)
    for now, expected in (
        (59.9, []),
        (60, [("client", "one", "alice", 1)]),
        (60, []),
        (90, [("monitor", "two", "alice", 2)]),
        (500, [("client", "one", "alice", 1), ("monitor", "two", "alice", 2)]),
        (559, []),
    ):
        node.claims.tick(now)
        assert node.held() == expected
    node.claims.lost(two)
    node.claims.tick(560)
    assert node.held() == [("client", "one", "alice", 1)]


def test_who_left_is_remembered_up_to_a_limit_the_latest_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "_LEFT_LIMIT", 2)
    node = Node()
    for peer_id in ("one", "two", "one", "three"):
        node.claims.lost(node.connect(peer_id=peer_id, number=1))
    moved = [node.claims.has_moved(replaced(2, peer_id=of)) for of in ("one", "two", "three")]
    assert moved == [True, False, True]


# --- races ----------------------------------------------------------------------------------------


class Race:
    """One id and two nodes that share a log: asked, answered, registered and told in any order."""

    def __init__(self) -> None:
        self.number = 0
        self.log = LogBackplane()
        self.nodes = [self._node(), self._node()]
        self.asking: list[tuple[int, Any, Claim]] = []
        self.granted: list[tuple[int, Any]] = []
        self.connections: dict[int, RecordingConnection] = {}

    def _node(self) -> EventBroadcaster:
        nodes = SharedIds()
        nodes.remote.attach.side_effect = self.log.attach
        nodes.remote.publish.side_effect = self.log.publish
        node = EventBroadcaster(clock=ManualClock(), backplane=nodes.remote)
        nodes.remote.claim = self._claim
        return node

    def _claim(self, *_: str) -> Any:
        previous, self.number = self.number, self.number + 1
        return _Answer(Claim(owner="alice", number=self.number, previous=previous))

    def ask(self, at: int) -> None:
        asking = self.nodes[at].prepare("client", "p", ALICE)
        self.asking.append((at, asking, asking.send(None)))

    def answer(self, which: int) -> None:
        if self.asking:
            at, asking, claim = self.asking.pop(which % len(self.asking))
            with pytest.raises(StopIteration) as returned:
                asking.send(claim)
            self.granted.append((at, returned.value.value))

    def register(self, which: int) -> None:
        if self.granted:
            at, grant = self.granted.pop(which % len(self.granted))
            connection = self.connections[grant.claim.number] = RecordingConnection()
            try:
                self.nodes[at].add_client("p", connection, principal=ALICE, grant=grant)
            except Replaced:
                connection.close(4409, "refused")

    def tell(self, _: int) -> None:
        self.log.give_back()


class _Answer:
    """Awaited, it gives out what the nodes decided; resumed, it returns that."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim

    def __await__(self) -> Any:
        return (yield self.claim)


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "answer", "register", "tell"]), st.integers(0, 1)),
        max_size=30,
    )
)
def test_of_those_that_race_the_last_to_ask_stays_and_nobody_else(
    steps: list[tuple[str, int]],
) -> None:
    race = Race()
    race.ask(0)
    for step, argument in steps:
        getattr(race, step)(argument)
    while race.asking:
        race.answer(0)
    while race.granted:
        race.register(0)
    race.tell(0)
    left_open = [number for number, each in race.connections.items() if each.closed is None]
    assert left_open == [race.number]
