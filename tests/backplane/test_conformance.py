import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest

from jobqueue_broadcast.backplane import Backplane, InProcessBackplane, Receiver, RemoteBackplane
from jobqueue_broadcast.backplane.redis import RedisBackplane
from jobqueue_broadcast.testing.backplanes import CHECKS, check_backplane
from tests.backplane.cluster import QUICK
from tests.backplane.servers import RedisServer

Check = Callable[[Callable[[], Backplane]], Awaitable[None]]

by_name = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)


@by_name
def test_in_process(check: Check) -> None:
    asyncio.run(_run(check, InProcessBackplane))


@pytest.mark.redis
@by_name
def test_redis(check: Check, redis_server: RedisServer) -> None:
    prefix = uuid4().hex
    asyncio.run(_run(check, lambda: RedisBackplane(redis_server.url, prefix=prefix, **QUICK)))


@pytest.mark.redis
def test_all_at_once(redis_server: RedisServer) -> None:
    asyncio.run(check_backplane(lambda name: RedisBackplane(redis_server.url, prefix=name)))


def test_redis_is_remote_and_in_process_is_not() -> None:
    assert isinstance(RedisBackplane("redis://localhost"), RemoteBackplane)
    assert not isinstance(InProcessBackplane(), RemoteBackplane)


class Reversed:
    """A backplane that is wrong: it gives payloads back last first."""

    def __init__(self) -> None:
        self._taken: list[bytes] = []

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver
        receiver.restart("epoch", 0)

    def publish(self, payload: bytes) -> None:
        self._taken.append(payload)
        if len(self._taken) == 1000:
            for sequence, taken in enumerate(reversed(self._taken), 1):
                self._receiver.receive(sequence, taken)


def test_a_wrong_one_is_found_out() -> None:
    with pytest.raises(AssertionError, match="in the order of publish"):
        asyncio.run(check_backplane(lambda _: Reversed()))


async def _run(check: Check, make: Callable[[], Backplane]) -> None:
    await check(make)
