"""When a peer connects again, and when it gives up."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.client._reconnect import Backoff, Reconnect, seconds_of_retry_after
from jobqueue_broadcast.errors import (
    CloseCode,
    ConnectionEnded,
    ConnectRefused,
    InvalidArgument,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def reconnect(fraction: float = 1.0, clock: Clock | None = None, **backoff: float) -> Reconnect:
    settings = {"base": 1.0, "cap": 8.0, "stable_after": 10.0} | backoff
    return Reconnect(Backoff(**settings), clock or Clock(), lambda: fraction)


def test_the_most_one_waits_doubles_up_to_the_cap() -> None:
    peer = reconnect()
    assert [peer.failed() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_jitter_is_full() -> None:
    assert reconnect(0.0).failed() == 0.0
    assert reconnect(0.25).failed() == 0.25


@given(
    base=st.floats(0, 10),
    factor=st.floats(1, 100),
    fractions=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=80),
)
def test_a_wait_is_never_beyond_its_bound(
    base: float, factor: float, fractions: list[float]
) -> None:
    values = iter(fractions)
    cap = base * factor
    peer = Reconnect(Backoff(base=base, cap=cap), Clock(), lambda: next(values))
    for attempt in range(len(fractions)):
        assert 0 <= peer.failed() <= min(cap, base * 2.0**attempt)


def test_only_a_stable_connection_resets() -> None:
    clock = Clock()
    peer = reconnect(clock=clock)
    assert [peer.failed(), peer.failed()] == [1.0, 2.0]
    peer.opened()
    clock.now += 9.5
    assert peer.closed(1006, "") == 4.0
    peer.opened()
    clock.now += 10.0
    assert peer.closed(1006, "") == 1.0


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4408, 4999])
def test_codes_that_may_pass(code: int) -> None:
    assert reconnect().closed(code, "") == 1.0


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1010, 4403, 4409])
def test_codes_that_say_do_not_reconnect(code: int) -> None:
    with pytest.raises(ConnectionEnded) as ended:
        reconnect().closed(code, "because")
    assert (ended.value.code, ended.value.reason) == (code, "because")


def test_every_close_code_of_the_protocol_is_decided_as_it_says() -> None:
    for code in CloseCode:
        if code is CloseCode.UNAUTHENTICATED:
            continue
        try:
            reconnect().closed(code, "")
        except ConnectionEnded:
            assert not code.reconnect
        else:
            assert code.reconnect


def test_too_many_commands_waits_at_least_a_second() -> None:
    assert reconnect(0.0).closed(4429, "") == 1.0


def test_a_credential_may_be_renewed_once_until_a_connection_lasts() -> None:
    clock = Clock()
    peer = reconnect(clock=clock)
    assert peer.closed(4401, "expired") == 1.0
    with pytest.raises(ConnectionEnded):
        peer.closed(4401, "expired")
    for _ in range(3):
        peer.opened()
        clock.now += 10.0
        assert peer.closed(4401, "expired") == 1.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 200, 302])
def test_statuses_that_refuse(status: int) -> None:
    with pytest.raises(ConnectRefused) as refused:
        reconnect().refused(status, "no")
    assert refused.value.status == status


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_statuses_that_may_pass(status: int) -> None:
    assert reconnect().refused(status, "later") == 1.0


def test_jitter_comes_on_top_of_retry_after() -> None:
    assert reconnect(0.5).refused(503, "full", "7") == 7.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("0", 0),
        ("12", 12),
        (" 12 ", 12),
        ("-5", 0),
        ("soon", 0),
        ("٣", 0),
        ("99999999999999999999", 3600),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30),
        ("Thu, 01 Jan 2026 00:00:30 -0000", 30),
        ("Wed, 31 Dec 2025 23:59:30 GMT", 0),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert seconds_of_retry_after(value, NOW) == seconds


@given(st.text())
def test_any_retry_after_is_a_bounded_wait(value: str) -> None:
    assert 0 <= seconds_of_retry_after(value, NOW) <= 3600


@pytest.mark.parametrize("wrong", [{"base": -1.0}, {"base": 31.0}, {"stable_after": -1.0}])
def test_a_backoff_that_cannot_be_right(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        Backoff(**wrong)
