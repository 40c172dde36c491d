from jobqueue_broadcast.auth import Principal
from jobqueue_broadcast.delivery import Delivery, Group, Subscriber
from jobqueue_broadcast.expiries import Expiries
from jobqueue_broadcast.testing import ManualClock, RecordingConnection

DELIVERY = Delivery(ManualClock(), outbox_limit=0, stall_limit=0, on_lost=lambda _: None)


def subscriber(name: str, expires_at: float | None) -> Subscriber:
    connection = RecordingConnection()
    principal = Principal(id=name, expires_at=expires_at)
    group = Group(connection.wire, False)
    return Subscriber(DELIVERY, "monitor", name, principal, connection, group)


def test_those_whose_time_has_come_are_due_once_soonest_first() -> None:
    expiries = Expiries()
    for name, expires_at in (("c", 30.0), ("a", 10.0), ("never", None), ("b", 20.0), ("b2", 20.0)):
        expiries.add(subscriber(name, expires_at))
    assert len(expiries) == 4
    assert expiries.due(9.9) == []
    assert [each.id for each in expiries.due(20.0)] == ["a", "b", "b2"]
    assert [each.id for each in expiries.due(1e9)] == ["c"]
    assert (expiries.due(1e9), len(expiries)) == ([], 0)


def test_those_that_are_gone_are_not_kept_until_their_time() -> None:
    expiries = Expiries()
    stays = [subscriber(f"stays-{number}", 1e9) for number in range(100)]
    for each in stays:
        expiries.add(each)
    for number in range(10_000):
        gone = subscriber(f"gone-{number}", 1e6)
        expiries.add(gone)
        DELIVERY.forget(gone)
    assert len(expiries) <= 2 * len(stays) + 1
    assert set(stays) <= set(expiries.due(2e9))
