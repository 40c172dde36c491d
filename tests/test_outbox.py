from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.events import (
    Event,
    JobAssigned,
    JobCompleted,
    JobEvent,
    JobFailed,
    JobProgress,
    MachineStatusChange,
    MachineUpdate,
    SystemCounts,
    SystemStats,
)
from jobqueue_broadcast.frames import Frame
from jobqueue_broadcast.outbox import Outbox, ends, replaces
from tests.strategies import events

EVENTS: list[Event] = [
    *(JobProgress(job_id=job, worker_id="w", progress=0.1) for job in ("a", "b")),
    *(JobAssigned(job_id=job, worker_id="w") for job in ("a", "b")),
    *(JobCompleted(job_id=job, worker_id="w") for job in ("a", "b")),
    JobFailed(job_id="a", error="e"),
    *(MachineUpdate(machine_id=machine) for machine in ("m", "n")),
    MachineStatusChange(machine_id="m"),
    SystemStats(stats=SystemCounts()),
]


def frame(event: Event | None = None, size: int = 10) -> Frame:
    return Frame(b"x" * size, event)


def makes_pointless(newer: Event | None, older: Event | None) -> bool:
    """Section 8 of the wire protocol, read once more."""
    match older, newer:
        case JobProgress(), JobProgress() | JobCompleted() | JobFailed():
            return older.job_id == newer.job_id
        case SystemStats(), SystemStats():
            return True
        case MachineUpdate(), MachineUpdate():
            return older.machine_id == newer.machine_id
        case MachineStatusChange(), MachineStatusChange():
            return older.machine_id == newer.machine_id
        case _:
            return False


@given(
    st.integers(0, 200),
    st.lists(
        st.tuples(st.sampled_from([None, *EVENTS]), st.integers(1, 60)) | st.integers(1, 100),
        max_size=40,
    ),
)
def test_an_outbox_keeps_order_and_its_limit_and_drops_only_what_is_pointless(
    limit: int, steps: list[tuple[Event | None, int] | int]
) -> None:
    outbox = Outbox(limit)
    model: list[Frame] = []
    dropped = 0
    for step in steps:
        if isinstance(step, int):
            taken = outbox.take(step)
            assert taken == model[: len(taken)]
            assert bool(taken) == bool(model)
            # No more than was asked for, but for the last one.
            assert sum(len(each.payload) for each in taken[:-1]) < step
            assert len(taken) == len(model) or sum(len(each.payload) for each in taken) >= step
            del model[: len(taken)]
        else:
            new = frame(*step)
            kept = [old for old in model if not makes_pointless(new.event, old.event)]
            dropped += len(model) - len(kept)
            model = kept
            roomy = sum(len(each.payload) for each in model) + step[1] <= limit
            assert outbox.put(new) is roomy
            if roomy:
                model.append(new)
        assert outbox.size == sum(len(each.payload) for each in model) <= limit
        assert (len(outbox), outbox.conflated) == (len(model), dropped)
    assert outbox.take(1 << 30) == model
    assert (len(outbox), outbox.size) == (0, 0)


@given(events(), events())
def test_only_the_listed_kinds_replace_and_only_outcomes_end(older: Event, newer: Event) -> None:
    old, new = Frame(b"{}", older), Frame(b"{}", newer)
    pointless = replaces(old) is not None and replaces(old) in (replaces(new), ends(new))
    assert pointless == makes_pointless(newer, older)


def test_a_reply_replaces_nothing_and_is_never_replaced() -> None:
    assert (replaces(frame()), ends(frame())) == (None, None)


def test_an_outcome_is_never_dropped() -> None:
    outbox = Outbox(1000)
    outcome = frame(JobCompleted(job_id="a", worker_id="w"))
    assert outbox.put(outcome)
    later: list[JobEvent] = [
        JobProgress(job_id="a", worker_id="w", progress=1.0),
        JobFailed(job_id="a", error="e"),
    ]
    for event in later:
        outbox.put(frame(event))
    assert outcome in outbox.take(1000)


def test_an_outbox_is_taken_from_in_pieces_and_refuses_what_it_has_no_room_for() -> None:
    outbox = Outbox(25)
    first, second = frame(), frame()
    assert outbox.put(first)
    assert outbox.put(second)
    assert not outbox.put(frame())
    assert outbox.take(5) == [first]
    assert outbox.take(5) == [second]
