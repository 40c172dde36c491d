"""The buffer of a monitor: bounded, in order, nothing dropped."""

import anyio
import pytest

from jobqueue_broadcast.client._buffer import Buffer
from jobqueue_broadcast.errors import ConnectionEnded

pytestmark = pytest.mark.anyio


async def test_putting_waits_for_room_and_nothing_is_dropped() -> None:
    buffer: Buffer[int] = Buffer(3)

    async def fill() -> None:
        for number in range(10):
            await buffer.put(number)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill)
            await anyio.wait_all_tasks_blocked()
            assert len(buffer) == 3
            assert [await buffer.get() for _ in range(10)] == list(range(10))


async def test_whoever_waits_for_an_answer_lifts_the_limit() -> None:
    buffer: Buffer[int] = Buffer(1)

    async def fill() -> None:
        for number in range(4):
            await buffer.put(number)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fill)
            await anyio.wait_all_tasks_blocked()
            assert len(buffer) == 1
            with buffer.waived():
                await anyio.wait_all_tasks_blocked()
                assert len(buffer) == 4


async def test_the_end_is_told_after_the_last_item() -> None:
    buffer: Buffer[int] = Buffer(3)
    await buffer.put(1)
    buffer.fail(ConnectionEnded(4409, "replaced"))
    buffer.fail(ConnectionEnded(1000, "later ones do not count"))
    assert await buffer.get() == 1
    for _ in range(2):
        with pytest.raises(ConnectionEnded) as ended:
            await buffer.get()
        assert ended.value.code == 4409


async def test_the_end_wakes_who_waits() -> None:
    buffer: Buffer[int] = Buffer(3)

    async def get() -> None:
        with pytest.raises(ConnectionEnded):
            await buffer.get()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await anyio.wait_all_tasks_blocked()
            buffer.fail(ConnectionEnded(1000, ""))
