import time

from jobqueue_broadcast.clock import SystemClock


def test_the_time_of_day_is_in_milliseconds() -> None:
    before = time.time()
    now = SystemClock().now_ms()
    after = time.time()
    assert isinstance(now, int)
    assert int(before * 1000) - 1 <= now <= after * 1000 + 1


def test_the_steady_clock_is_in_seconds_and_never_goes_back() -> None:
    clock = SystemClock()
    before = time.monotonic()
    readings = [clock.monotonic() for _ in range(100)]
    assert readings == sorted(readings)
    assert before <= readings[0] <= readings[-1] <= time.monotonic()
