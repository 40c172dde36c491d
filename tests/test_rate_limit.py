from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.rate_limit import TokenBucket
from jobqueue_broadcast.testing import ManualClock


def test_a_burst_then_the_rate() -> None:
    clock = ManualClock()
    bucket = TokenBucket(clock, rate=2, burst=3)
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]
    clock.advance(0.5)
    assert [bucket.take() for _ in range(2)] == [True, False]


def test_it_never_holds_more_than_a_burst() -> None:
    clock = ManualClock()
    bucket = TokenBucket(clock, rate=2, burst=3)
    clock.advance(3600)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_refusals_in_a_row_are_counted() -> None:
    clock = ManualClock()
    bucket = TokenBucket(clock, rate=1, burst=1)
    assert bucket.take()
    assert bucket.refused == 0
    assert [bucket.take(), bucket.take()] == [False, False]
    assert bucket.refused == 2
    clock.advance(1)
    assert bucket.take()
    assert bucket.refused == 0


@given(
    st.floats(0.1, 100),
    st.integers(1, 20),
    st.lists(st.floats(0, 2), max_size=40),
)
def test_never_more_than_burst_and_rate_allow(rate: float, burst: int, pauses: list[float]) -> None:
    clock = ManualClock()
    bucket = TokenBucket(clock, rate, burst)
    taken = 0
    for pause in pauses:
        clock.advance(pause)
        taken += bucket.take()
    assert taken <= burst + rate * clock.monotonic() + 1e-6
