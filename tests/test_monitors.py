from typing import Any

import pytest

from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.errors import IdTaken
from jobqueue_broadcast.events import JobData, JobProgress, JobSubmitted, SystemCounts, SystemStats
from jobqueue_broadcast.frames import TextWire
from jobqueue_broadcast.positions import Position
from jobqueue_broadcast.predicates import Filters, Subscription
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.doubles import BrokenConnection, HandLoop, SlowConnection

NOW = 1_642_700_000_000


@pytest.fixture
def broadcaster() -> EventBroadcaster:
    return EventBroadcaster(clock=ManualClock())


def progress(timestamp: int, job_id: str = "a") -> JobProgress:
    return JobProgress(job_id=job_id, worker_id="w", progress=0.5, timestamp=timestamp)


def submitted(job_id: str, job_type: str, timestamp: int = 1) -> JobSubmitted:
    data = JobData(id=job_id, job_type=job_type, created_at=1)
    return JobSubmitted(job_id=job_id, job_data=data, timestamp=timestamp)


def position(broadcaster: EventBroadcaster, sequence: int) -> Position:
    return Position(broadcaster.history.epoch, sequence)


def timestamps(connection: Any) -> list[int]:
    return [frame["timestamp"] for frame in connection.frames if frame["timestamp"] < NOW]


def test_a_monitor_is_greeted_and_then_receives(broadcaster: EventBroadcaster) -> None:
    connection = RecordingConnection()
    added = broadcaster.add_monitor("m", connection)
    assert connection.take() == [{"type": "connected", "timestamp": NOW}]
    broadcaster.broadcast(progress(7))
    assert "position" not in connection.take()[0]
    assert (len(broadcaster.monitors), list(broadcaster.monitors)) == (1, [added])
    assert broadcaster.monitors.get("m") is added
    assert broadcaster.monitors.subscription(added) == Subscription.of(None)


def test_positions_only_where_asked_for(broadcaster: EventBroadcaster) -> None:
    broadcaster.broadcast(progress(1))
    plain, opted = RecordingConnection(), RecordingConnection()
    broadcaster.add_monitor("plain", plain)
    broadcaster.add_monitor("opted", opted, resume="new")
    broadcaster.broadcast(progress(2))
    assert [frame.get("position") for frame in plain.frames] == [None, None]
    epoch = broadcaster.history.epoch
    assert [frame["position"] for frame in opted.frames] == [f"{epoch}:1", f"{epoch}:2"]
    assert broadcaster.stats().monitor_groups == 2


def test_the_same_subscription_on_the_same_wire_is_one_group(
    broadcaster: EventBroadcaster,
) -> None:
    wires = [TextWire(), TextWire()]
    connections = [RecordingConnection(wires[number % 2]) for number in range(6)]
    for number, connection in enumerate(connections):
        broadcaster.add_monitor(f"m{number}", connection, ["jobs"])
    assert broadcaster.monitors.group_count == 2
    for number, connection in enumerate(connections):
        broadcaster.remove_monitor(f"m{number}", connection)
    assert (broadcaster.monitors.group_count, len(broadcaster.monitors)) == (0, 0)


def test_a_newer_connection_replaces_and_a_late_close_does_not_evict_it(
    broadcaster: EventBroadcaster,
) -> None:
    old, new = RecordingConnection(), RecordingConnection()
    broadcaster.add_monitor("m", old)
    broadcaster.add_monitor("m", new)
    assert old.closed == (4409, "replaced by a newer connection")
    broadcaster.remove_monitor("m", old)
    old.take()
    broadcaster.broadcast(progress(1))
    assert (len(old.take()), timestamps(new)) == (0, [1])


def test_an_id_belongs_to_its_principal_while_it_is_connected(
    broadcaster: EventBroadcaster,
) -> None:
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection, principal=Principal(id="alice"))
    with pytest.raises(IdTaken):
        broadcaster.add_monitor("m", RecordingConnection(), principal=Principal(id="bob"))
    with pytest.raises(IdTaken):
        broadcaster.check_id("monitor", "m", Principal(id="bob"))
    assert connection.closed is None
    broadcaster.remove_monitor("m", connection)
    broadcaster.check_id("monitor", "m", Principal(id="bob"))


def test_a_monitor_resumes_with_what_its_filters_let_pass(broadcaster: EventBroadcaster) -> None:
    broadcaster.broadcast(submitted("a", "x", 1))
    broadcaster.broadcast(submitted("b", "y", 2))
    broadcaster.broadcast(progress(3, "a"))
    broadcaster.broadcast(progress(4, "b"))
    connection = RecordingConnection()
    broadcaster.add_monitor(
        "m",
        connection,
        filters=Filters.of(job_types=["x"]),
        resume=position(broadcaster, 1),
    )
    broadcaster.broadcast(progress(5, "a"))
    assert timestamps(connection) == [3, 5]
    assert connection.frames[0]["position"] == str(position(broadcaster, 1))
    assert connection.frames[-1]["position"] == str(position(broadcaster, 5))


def test_where_it_cannot_continue_it_is_told_and_given_the_state(
    broadcaster: EventBroadcaster,
) -> None:
    broadcaster.broadcast(submitted("a", "x", 1))
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection, resume=Position("another", 1))
    greeting, required, snapshot = connection.take()
    assert greeting["position"] == "another:1"
    assert (required["type"], required["reason"]) == ("resync_required", "epoch")
    assert required["position"] == str(position(broadcaster, 1))
    assert [job["id"] for job in snapshot["data"]["jobs"]["pending"]] == ["a"]
    broadcaster.broadcast(progress(2))
    assert timestamps(connection) == [2]
    assert broadcaster.stats().resync_required_total == 1


def test_a_subscription_is_replaced_from_the_next_event_on(broadcaster: EventBroadcaster) -> None:
    loop = HandLoop()
    broadcaster.bind(loop.call_soon, loop.call_soon)
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection, ["jobs"])
    broadcaster.broadcast(progress(1))
    broadcaster.update_subscription("m", ["system_stats"])
    broadcaster.broadcast(progress(2))
    broadcaster.broadcast(SystemStats(stats=SystemCounts(), timestamp=3))
    broadcaster.update_subscription("m", ["system_stats"])
    loop.run()
    assert timestamps(connection) == [1, 3]


def test_a_subscription_replaced_while_it_catches_up_misses_and_doubles_nothing(
    broadcaster: EventBroadcaster,
) -> None:
    for number in range(1, 400):
        broadcaster.broadcast(progress(number))
    slow = SlowConnection()
    slow.attach(broadcaster.add_monitor("m", slow, ["jobs"], resume=position(broadcaster, 0)))
    # The whole past went to the transport before it could say stop; another one is slower.
    loop = HandLoop()
    broadcaster.bind(loop.call_soon, loop.call_soon)
    slow = SlowConnection()
    slow.attach(broadcaster.add_monitor("m", slow, ["jobs"], resume=position(broadcaster, 0)))
    loop.run()
    monitor = broadcaster.monitors.get("m")
    assert monitor is not None
    assert not monitor.caught_up
    broadcaster.update_subscription("m", ["system_stats"])
    broadcaster.broadcast(progress(400))
    broadcaster.broadcast(SystemStats(stats=SystemCounts(), timestamp=401))
    loop.run()
    slow.read()
    loop.run()
    broadcaster.broadcast(progress(402))
    broadcaster.broadcast(SystemStats(stats=SystemCounts(), timestamp=403))
    loop.run()
    slow.read()
    assert timestamps(slow) == [*range(1, 401), 403]


def test_who_breaks_while_its_subscription_is_replaced_is_nobodys_member(
    broadcaster: EventBroadcaster,
) -> None:
    loop = HandLoop()
    broadcaster.bind(loop.call_soon, loop.call_soon)
    connection = SlowConnection(1000)
    broadcaster.add_monitor("m", connection, ["jobs"])
    loop.run()
    connection.broken = True
    broadcaster.broadcast(progress(1))
    broadcaster.update_subscription("m", ["system_stats"])
    assert (len(broadcaster.monitors), broadcaster.monitors.group_count) == (0, 0)


def test_who_joins_a_group_whose_last_member_breaks_is_not_lost(
    broadcaster: EventBroadcaster,
) -> None:
    loop = HandLoop()
    broadcaster.bind(loop.call_soon, loop.call_soon)
    broken = BrokenConnection()
    connection = RecordingConnection(broken.wire)
    broadcaster.add_monitor("broken", broken)
    broadcaster.broadcast(progress(1))
    broadcaster.add_monitor("m", connection)
    broadcaster.broadcast(progress(2))
    loop.run()
    assert timestamps(connection) == [2]


def test_heartbeats_go_to_those_that_hold_the_topic(broadcaster: EventBroadcaster) -> None:
    one, two, other = RecordingConnection(), RecordingConnection(), RecordingConnection()
    broadcaster.add_monitor("one", one)
    broadcaster.add_monitor("two", two)
    broadcaster.add_monitor("other", other, ["jobs"])
    for connection in (one, two, other):
        connection.take()
    broadcaster.monitors.heartbeat()
    broadcaster.flush()
    ack = {"type": "heartbeat_ack", "timestamp": NOW, "server_timestamp": NOW}
    assert one.take() == [ack | {"monitor_id": "one"}]
    assert two.take() == [ack | {"monitor_id": "two"}]
    assert other.take() == []


def test_a_heartbeat_of_one_that_just_broke_goes_to_nobody_else(
    broadcaster: EventBroadcaster,
) -> None:
    loop = HandLoop()
    broadcaster.bind(loop.call_soon, loop.call_soon)
    good, broken = RecordingConnection(), SlowConnection(10_000, RecordingConnection().wire)
    broadcaster.add_monitor("good", good)
    broadcaster.add_monitor("broken", broken)
    loop.run()
    good.take()
    broken.broken = True
    broadcaster.broadcast(progress(1))
    broadcaster.monitors.heartbeat()
    loop.run()
    assert [frame.get("monitor_id", "") for frame in good.take()] == ["", "good"]


def test_a_page_is_by_the_monitors_own_topics_and_filters(broadcaster: EventBroadcaster) -> None:
    connection = RecordingConnection()
    added = broadcaster.add_monitor("m", connection, ["jobs"], Filters.of(job_types=["x"]))
    empty = broadcaster.monitors.page(added, 0, 10)
    assert (empty.events, empty.has_more, empty.oldest_available_timestamp) == ([], False, NOW)
    broadcaster.broadcast(submitted("a", "x", 1))
    broadcaster.broadcast(submitted("b", "y", 2))
    broadcaster.broadcast(progress(3, "a"))
    broadcaster.broadcast(progress(4, "a"))
    page = broadcaster.monitors.page(added, 1, 1)
    assert (len(page.events), page.has_more, page.oldest_available_timestamp) == (2, True, 1)


def test_events_missed_on_this_node_are_made_good_by_the_state(
    broadcaster: EventBroadcaster,
) -> None:
    broadcaster.monitors.resync("trimmed")
    plain, opted, slow = RecordingConnection(), RecordingConnection(), SlowConnection()
    broadcaster.add_monitor("plain", plain)
    broadcaster.add_monitor("opted", opted, resume="new")
    loop = HandLoop()
    broadcaster.bind(loop.call_soon, loop.call_soon)
    broadcaster.add_monitor("slow", slow, resume=position(broadcaster, 0))
    plain.take()
    opted.take()
    broadcaster.monitors.resync("trimmed")
    broadcaster.flush()
    assert [frame["type"] for frame in plain.take()] == ["full_state_snapshot"]
    assert [frame["type"] for frame in opted.take()] == ["resync_required", "full_state_snapshot"]
    assert len(slow.buffer) == 0


def test_an_event_is_one_frame_of_each_kind_however_many_groups_there_are(
    broadcaster: EventBroadcaster,
) -> None:
    connections = [RecordingConnection() for _ in range(4)]
    for number, connection in enumerate(connections):
        topics = ["jobs"] if number < 2 else ["jobs", "workers"]
        resume: Any = "new" if number % 2 else None
        broadcaster.add_monitor(f"m{number}", connection, topics, resume=resume)
    broadcaster.broadcast(progress(1))
    last = [connection.payloads[-1] for connection in connections]
    assert last[0] is last[2]
    assert last[1] is last[3]


def test_who_is_removed_twice_does_not_evict_its_successor(broadcaster: EventBroadcaster) -> None:
    old = broadcaster.add_monitor("m", RecordingConnection())
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection)
    broadcaster.monitors.remove(old)
    broadcaster.broadcast(progress(1))
    assert timestamps(connection) == [1]
