"""Whose an id is over all nodes: `Claims` with all that a backplane outside this process answers.

The connections are those of a broadcaster of its own, which asks nobody.
"""

import logging
from typing import Any

import pytest

from jobqueue_broadcast import claims
from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.backplane import Claim
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.claims import Claims
from jobqueue_broadcast.control import PeerReplaced
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import BackplaneUnavailable, IdTaken
from jobqueue_broadcast.handshake import Kind
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.doubles import SharedIds

ALICE, BOB = Principal(id="alice"), Principal(id="bob")


class Node:
    """The claims of one node; what all nodes answer is said by the test.

    Attributes:
        answer: What is answered to whoever asks; an error is raised.
        asked: What the nodes were asked: kind, id, principal and connection.
        told: What was published.
    """

    def __init__(self) -> None:
        self.answer: Claim | Exception = Claim(owner="alice")
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
    ) -> str:
        """Claim an id; return the name of the connection it is for."""
        if answer:
            self.answer = Claim(owner="alice", **answer)
        with pytest.raises(StopIteration):
            self.claims.claim(kind, peer_id, principal).send(None)
        return self.asked[-1][-1]

    def peer(self, kind: Kind = "client", peer_id: str = "p") -> Subscriber:
        """A connection, registered but not noted."""
        add = self.peers.add_monitor if kind == "monitor" else self.peers.add_client
        return add(peer_id, RecordingConnection(), principal=ALICE)

    def connect(
        self, kind: Kind = "client", peer_id: str = "p", now: float = 0, **answer: Any
    ) -> tuple[Subscriber, str]:
        """Claim an id for a connection and note it; return it and its name."""
        name = self.claim(kind, peer_id, **answer)
        peer = self.peer(kind, peer_id)
        assert not self.claims.connected(peer, now)
        return peer, name

    def held(self) -> list[tuple[str, ...]]:
        """What was said again to be there, since this was last asked."""
        held = [call.args for call in self.remote.hold.call_args_list]
        self.remote.hold.reset_mock()
        return held

    def released(self) -> list[tuple[Any, ...]]:
        return [call.args for call in self.remote.release.call_args_list]


def replaced(name: str, kind: Kind = "client", peer_id: str = "p") -> PeerReplaced:
    return PeerReplaced(kind=kind, id=peer_id, connection=name)


# --- asking ---------------------------------------------------------------------------------------


def test_each_connection_asks_under_a_name_of_its_own() -> None:
    node = Node()
    names = {node.claim("monitor"), node.claim("client"), node.claim("client")}
    assert [question[:3] for question in node.asked] == [
        ("monitor", "p", "alice"),
        ("client", "p", "alice"),
        ("client", "p", "alice"),
    ]
    assert len(names) == 3


def test_an_id_of_another_principal_is_refused_and_nothing_of_it_is_known() -> None:
    node = Node()
    node.answer = Claim(owner="alice", known=True, jobs={"secret": (1, 0)})
    with pytest.raises(IdTaken, match="client id 'p' belongs to another principal"):
        node.claims.claim("client", "p", BOB).send(None)
    assert node.claims.jobs_of("p", ALICE) is None
    assert not node.claims.connected(node.peer(), 0)
    assert len(node.claims) == 0


def test_where_the_nodes_cannot_be_asked_this_one_decides_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node()
    node.answer = BackplaneUnavailable("no answer in time")
    with caplog.at_level(logging.WARNING, "jobqueue_broadcast"):
        peer, _ = node.connect()
    assert caplog.messages == ["client id 'p' is checked on this node only: no answer in time"]
    # What nobody was asked for is neither said again nor given up.
    node.claims.tick(1_000)
    node.claims.lost(peer)
    assert (len(node.claims), node.told, node.held(), node.released()) == (0, [], [], [])


def test_what_a_client_followed_is_known_until_it_is_registered() -> None:
    node = Node()
    assert node.claims.jobs_of("p", ALICE) is None
    node.claim("monitor", known=True, jobs={"of a monitor": (1, 0)})
    assert node.claims.jobs_of("p", ALICE) is None
    node.claim(known=False)
    assert node.claims.jobs_of("p", ALICE) is None
    node.claim(known=True)
    assert node.claims.jobs_of("p", ALICE) == {}
    node.claim(known=True, jobs={"a": (3, 1)})
    assert node.claims.jobs_of("p", ALICE) == {"a": (3, 1)}
    node.claims.connected(node.peer(), 0)
    assert node.claims.jobs_of("p", ALICE) is None


# --- who replaces whom ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["monitor", "client"])
def test_the_node_of_the_older_connection_is_told_its_name(kind: Kind) -> None:
    node = Node()
    node.connect(kind, previous="")
    assert node.told == []
    node.connect(kind, previous="elsewhere")
    assert node.told == [replaced("elsewhere", kind)]


def test_nobody_is_told_of_a_connection_that_was_here() -> None:
    node = Node()
    peer, name = node.connect()
    node.claims.lost(peer)
    peer, name = node.connect(previous=name)
    assert node.told == []
    # Here, then elsewhere, then here again: that other node still expects it back.
    node.claims.lost(peer)
    node.connect(previous="elsewhere")
    assert node.told == [replaced("elsewhere")]
    assert not node.claims.has_moved(replaced(name))


def test_a_connection_is_replaced_by_its_name_alone() -> None:
    node = Node()
    peer, name = node.connect()
    other, other_name = node.connect("monitor")
    for message, subscriber, expected in (
        (replaced(name), peer, True),
        (replaced("older"), peer, False),
        (replaced(name), None, False),
        (replaced(other_name, "monitor"), other, True),
        (replaced(name), node.peer(), False),
    ):
        assert node.claims.is_replaced(message, subscriber) is expected


def test_one_replaced_before_it_is_registered_learns_it_then() -> None:
    node = Node()
    name = node.claim()
    assert not node.claims.is_replaced(replaced("older"), None)
    assert not node.claims.is_replaced(replaced(name, "monitor"), None)
    assert not node.claims.is_replaced(replaced(name, peer_id="q"), None)
    assert not node.claims.connected(node.peer(), 0)
    name = node.claim()
    # Its predecessor here is another connection, and not the one that is meant.
    older = node.peer()
    assert not node.claims.is_replaced(replaced(name), older)
    peer = node.peer()
    assert node.claims.connected(peer, 0)
    assert node.claims.is_replaced(replaced(name), peer)


def test_who_left_this_node_has_moved_once_it_is_told_so() -> None:
    node = Node()
    peer, name = node.connect()
    assert not node.claims.has_moved(replaced(name))
    node.claims.lost(peer)
    assert not node.claims.has_moved(replaced("older"))
    assert not node.claims.has_moved(replaced(name, "monitor"))
    assert node.claims.has_moved(replaced(name))
    assert not node.claims.has_moved(replaced(name))


# --- holding and giving up ------------------------------------------------------------------------


def test_an_id_is_given_up_once_and_a_clients_is_kept_for_it() -> None:
    node = Node()
    client, client_name = node.connect("client")
    monitor, monitor_name = node.connect("monitor")
    assert len(node.claims) == 2
    for peer in (client, monitor, client):
        node.claims.lost(peer)
    assert node.released() == [
        ("client", "p", client_name, 10),
        ("monitor", "p", monitor_name, 0.0),
    ]
    assert len(node.claims) == 0


def test_each_connection_is_said_again_once_a_minute() -> None:
    node = Node()
    node.claims.tick(0)
    _, one = node.connect(peer_id="one", now=0)
    two_peer, two = node.connect("monitor", "two", now=30)
    for now, expected in (
        (59.9, []),
        (60, [("client", "one", "alice", one)]),
        (60, []),
        (90, [("monitor", "two", "alice", two)]),
        (500, [("client", "one", "alice", one), ("monitor", "two", "alice", two)]),
        (559, []),
    ):
        node.claims.tick(now)
        assert node.held() == expected
    node.claims.lost(two_peer)
    node.claims.tick(560)
    assert node.held() == [("client", "one", "alice", one)]


def test_ids_that_were_granted_and_never_used_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_PENDING_LIMIT", 2)
    node = Node()
    for peer_id in ("one", "two", "three"):
        node.claim(peer_id=peer_id, known=True)
    known = [node.claims.jobs_of(peer_id, ALICE) for peer_id in ("one", "two", "three")]
    assert known == [None, {}, {}]


def test_who_left_is_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_LEFT_LIMIT", 2)
    node = Node()
    left: dict[str, str] = {}
    for peer_id in ("one", "two", "three"):
        peer, left[peer_id] = node.connect(peer_id=peer_id)
        node.claims.lost(peer)
    moved = [node.claims.has_moved(replaced(name, peer_id=of)) for of, name in left.items()]
    assert moved == [False, True, True]


def test_what_was_granted_and_not_used_is_nobody_elses_to_inherit() -> None:
    node = Node()
    node.claim(known=True, jobs={"secret": (1, 0)})
    assert node.claims.jobs_of("p", ALICE) == {"secret": (1, 0)}
    assert node.claims.jobs_of("p", BOB) is None
    # The backplane fails, and this node alone lets bob have the id.
    node.answer = BackplaneUnavailable("away")
    node.claim(principal=BOB)
    assert node.claims.jobs_of("p", BOB) is None
    bob = node.peers.add_client("p", RecordingConnection(), principal=BOB)
    assert not node.claims.connected(bob, 0)
    assert len(node.claims) == 0


def test_a_grant_to_another_principal_is_not_taken_for_ones_own() -> None:
    node = Node()
    node.claim()
    bob = node.peers.add_client("p", RecordingConnection(), principal=BOB)
    assert not node.claims.connected(bob, 0)
    assert len(node.claims) == 0
