"""The monitor against a real server: typed events, resume, gaps, back-pressure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from jobqueue_broadcast import (
    Filters,
    JobCompleted,
    JobEvent,
    JobProgress,
    JobSubmitted,
    MachineShutdown,
    SystemStats,
    WorkerDisconnected,
)
from jobqueue_broadcast.client import Gap, MonitorPeer, connect_monitor
from jobqueue_broadcast.errors import CommandFailed, ConnectionEnded, InvalidArgument
from tests.client.harness import BACKOFF, ProxyThread, RealServer, in_time, until

pytestmark = pytest.mark.anyio

Serve = Callable[..., RealServer]
Proxied = Callable[[int], ProxyThread]


def progress(number: int, job_id: str = "j") -> JobProgress:
    return JobProgress(job_id=job_id, worker_id="w", progress=number / 10_000, timestamp=1 + number)


def submitted(job_id: str, job_type: str, priority: int = 0) -> JobSubmitted:
    data = {"id": job_id, "job_type": job_type, "priority": priority, "created_at": 1}
    return JobSubmitted(job_id=job_id, job_data=data, timestamp=1)  # type: ignore[arg-type]


async def take(monitor: MonitorPeer, count: int) -> list[Any]:
    return [await anext(monitor) for _ in range(count)]


async def test_events_are_typed_and_in_order(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_monitor(server.url, monitor_id="m") as monitor:
        events = [
            submitted("j", "render"),
            progress(1),
            JobCompleted(job_id="j", worker_id="w", result={"a": [1]}, timestamp=5, completed_at=5),
            MachineShutdown(machine_id="m", timestamp=6),
            SystemStats(stats={}, timestamp=7),  # type: ignore[arg-type]
        ]
        server.broadcast(*events)
        assert await take(monitor, len(events)) == events
        assert monitor.connected
        assert monitor.connections == 1
        assert "m" in repr(monitor)


async def test_topics_and_filters_from_the_beginning(serve: Serve) -> None:
    server = serve()
    filters = Filters.of(job_types=["render"], worker_ids=["w"], priority_range=(1, 5))
    async with (
        in_time(),
        connect_monitor(server.url, monitor_id="m", topics=["jobs"], filters=filters) as monitor,
    ):
        wanted = submitted("b", "render", 3)
        server.broadcast(
            submitted("a", "train", 3),
            WorkerDisconnected(worker_id="w", machine_id="m"),
            submitted("c", "render", 9),
            progress(1, "a"),
            wanted,
            progress(2, "b"),
        )
        assert await take(monitor, 2) == [wanted, progress(2, "b")]


async def test_subscribe_replaces_topics_and_filters_also_on_later_connections(
    serve: Serve, proxied: Proxied
) -> None:
    server = serve()
    proxy = proxied(server.port)
    async with (
        in_time(),
        connect_monitor(proxy.url, monitor_id="m", topics=["machines"], backoff=BACKOFF) as monitor,
    ):
        await monitor.subscribe(["jobs"], Filters.of(worker_ids=["w"]))
        for connection in (1, 2):
            await until(lambda: monitor.connections == connection)  # noqa: B023
            server.broadcast(
                MachineShutdown(machine_id="x"),
                JobProgress(job_id="j", worker_id="other", progress=0.5),
                progress(connection),
            )
            assert await anext(monitor) == progress(connection)
            proxy.cut()
        await monitor.subscribe()
        server.broadcast(MachineShutdown(machine_id="x", timestamp=9))
        assert await anext(monitor) == MachineShutdown(machine_id="x", timestamp=9)


async def test_filters_hold_while_a_resume_is_replayed(serve: Serve, proxied: Proxied) -> None:
    server = serve()
    proxy = proxied(server.port)
    filters = Filters.of(job_types=["render"], worker_ids=["w"])
    async with (
        in_time(),
        connect_monitor(proxy.url, monitor_id="m", filters=filters, backoff=BACKOFF) as monitor,
    ):
        proxy.withhold()
        events: list[JobEvent] = []
        for number in range(20):
            kind = "render" if number % 2 else "train"
            events += [submitted(f"{kind}{number}", kind), progress(number, f"{kind}{number}")]
        server.broadcast(*events)
        server.broadcast(JobProgress(job_id="q", worker_id="other", progress=0.1))
        proxy.cut()
        proxy.flow()
        expected = [event for event in events if event.job_id.startswith("render")]
        assert await take(monitor, len(expected)) == expected


async def test_full_state_and_resync(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_monitor(server.url, monitor_id="m") as monitor:
        server.broadcast(submitted("j", "render"), *[progress(number) for number in range(2, 12)])
        state = await monitor.full_state()
        assert [job["id"] for job in state["jobs"]["active"]] == ["j"]
        page = await monitor.resync(5, max_events=3)
        assert page.events == [progress(number) for number in (4, 5, 6)]
        assert page.has_more
        assert page.oldest_available_timestamp == 1
        last = await monitor.resync(page.events[-1].timestamp, max_events=100)
        assert last.events[0] == page.events[-1]
        assert not last.has_more


async def test_a_refused_command_raises_and_the_monitor_goes_on(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_monitor(server.url, monitor_id="m") as monitor:
        with pytest.raises(CommandFailed) as failed:
            await monitor.subscribe(["nonsense"])
        assert failed.value.code == "invalid_field"
        server.broadcast(progress(1))
        assert await anext(monitor) == progress(1)


async def test_filters_the_server_refuses_are_the_end(serve: Serve) -> None:
    server = serve()
    filters = Filters.of(job_types=["x" * 300])
    async with in_time():
        with pytest.raises(CommandFailed):
            async with connect_monitor(server.url, monitor_id="m", filters=filters):
                pytest.fail("without its filters the monitor would show what was not asked for")


async def test_commands_past_the_rate_are_repeated(serve: Serve) -> None:
    server = serve()
    async with in_time(60), connect_monitor(server.url, monitor_id="m") as monitor:
        for _ in range(130):
            assert (await monitor.full_state())["workers"] == {}
        assert monitor.connections == 1


async def test_a_cut_is_not_noticed(serve: Serve, proxied: Proxied) -> None:
    """Cut mid-stream, again and again: no event is lost, none shown twice, none reordered."""
    server = serve()
    proxy = proxied(server.port)
    total = 5000
    async with (
        in_time(60),
        connect_monitor(proxy.url, monitor_id="m", backoff=BACKOFF) as monitor,
        anyio.create_task_group() as tasks,
    ):

        async def produce() -> None:
            for begin in range(0, total, 50):
                server.broadcast(*[progress(number) for number in range(begin, begin + 50)])
                if begin % 500 == 250:
                    connections = monitor.connections
                    proxy.cut()
                    await until(lambda: monitor.connections > connections)  # noqa: B023

        tasks.start_soon(produce)
        for number in range(total):
            assert await anext(monitor) == progress(number)
        assert monitor.connections > 5


async def test_a_position_is_of_what_was_given_to_the_caller(serve: Serve) -> None:
    server = serve()
    async with in_time():
        async with connect_monitor(server.url, monitor_id="m") as monitor:
            begin = monitor.position
            server.broadcast(*[progress(number) for number in range(10)])
            await take(monitor, 4)
            position = monitor.position
            assert position != begin
        async with connect_monitor(server.url, monitor_id="m", resume=position) as monitor:
            assert monitor.position == position
            assert await take(monitor, 6) == [progress(number) for number in range(4, 10)]


async def test_trimmed_history_is_a_gap_with_the_state(serve: Serve, proxied: Proxied) -> None:
    server = serve(broadcaster={"history_limit": 5})
    proxy = proxied(server.port)
    async with in_time(), connect_monitor(proxy.url, monitor_id="m", backoff=BACKOFF) as monitor:
        server.broadcast(progress(1))
        assert await anext(monitor) == progress(1)
        proxy.withhold()
        server.broadcast(*[progress(number) for number in range(2, 50)])
        proxy.cut()
        proxy.flow()
        gap = await anext(monitor)
        assert isinstance(gap, Gap)
        assert gap.reason == "trimmed"
        assert gap.state is not None
        assert gap.state["jobs"]["active"][0]["progress"] == progress(49).progress
        assert monitor.position == gap.position
        server.broadcast(progress(50))
        assert await anext(monitor) == progress(50)


async def test_a_restarted_server_is_a_gap(serve: Serve) -> None:
    first = serve()
    async with in_time(), connect_monitor(first.url, monitor_id="m", backoff=BACKOFF) as monitor:
        first.broadcast(progress(1))
        assert await anext(monitor) == progress(1)
        first.stop()
        second = serve(port=first.port)
        gap = await anext(monitor)
        assert isinstance(gap, Gap)
        assert gap.reason == "epoch"
        second.broadcast(progress(2))
        assert await anext(monitor) == progress(2)


async def test_events_of_before_come_before_the_gap(serve: Serve) -> None:
    first = serve()
    async with in_time(), connect_monitor(first.url, monitor_id="m", backoff=BACKOFF) as monitor:
        first.broadcast(progress(1), progress(2))
        await until(lambda: len(monitor._buffer) == 2)
        first.stop()
        serve(port=first.port)
        items = await take(monitor, 3)
        assert items[:2] == [progress(1), progress(2)]
        assert isinstance(items[2], Gap)


async def test_a_slow_caller_slows_the_server_down_and_loses_nothing(serve: Serve) -> None:
    server = serve(broadcaster={"stall_limit": 600.0, "outbox_limit": 64 * 1024 * 1024})
    padding = "x" * 20_000
    total = 1000
    async with (
        in_time(60),
        connect_monitor(server.url, monitor_id="m", buffer_limit=10, backoff=BACKOFF) as monitor,
    ):
        server.broadcast(
            *[
                JobCompleted(job_id=f"j{number}", worker_id="w", result=padding)
                for number in range(total)
            ]
        )
        await until(lambda: len(monitor._buffer) == 10)
        assert server.stats().behind == 1, "TCP says to the server that nobody reads"
        for number in range(total):
            event = await anext(monitor)
            assert isinstance(event, JobCompleted)
            assert event.job_id == f"j{number}"
            assert len(monitor._buffer) <= 10
        assert monitor.connections == 1


async def test_a_caller_cut_for_slowness_comes_back_to_what_it_missed(serve: Serve) -> None:
    server = serve(broadcaster={"outbox_limit": 100_000})
    padding = "x" * 20_000
    total = 1000
    async with (
        in_time(60),
        connect_monitor(server.url, monitor_id="m", buffer_limit=10, backoff=BACKOFF) as monitor,
    ):
        for number in range(total):
            server.broadcast(JobCompleted(job_id=f"j{number}", worker_id="w", result=padding))
        assert server.stats().too_slow_total >= 1
        for number in range(total):
            event = await anext(monitor)
            assert isinstance(event, JobCompleted)
            assert event.job_id == f"j{number}"
        assert monitor.connections > 1


async def test_asking_while_the_buffer_is_full_is_answered(serve: Serve) -> None:
    server = serve()
    async with (
        in_time(),
        connect_monitor(server.url, monitor_id="m", buffer_limit=2) as monitor,
    ):
        server.broadcast(*[progress(number) for number in range(100)])
        await until(lambda: len(monitor._buffer) == 2)
        assert (await monitor.full_state())["jobs"]["active"]
        assert await take(monitor, 100) == [progress(number) for number in range(100)]


async def test_being_replaced_is_the_end_of_everything_that_waits(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_monitor(server.url, monitor_id="m", backoff=BACKOFF) as old:
        server.broadcast(progress(1))
        await until(lambda: len(old._buffer) == 1)
        async with connect_monitor(server.url, monitor_id="m") as new:
            assert await anext(old) == progress(1)
            for waiting in (lambda: anext(old), old.full_state, old.subscribe):
                with pytest.raises(ConnectionEnded) as ended:
                    await waiting()
                assert ended.value.code == 4409
            server.broadcast(progress(2))
            assert await anext(new) == progress(2)


async def test_compression_is_agreed_to(serve: Serve) -> None:
    server = serve(compression=True)
    async with (
        in_time(),
        connect_monitor(server.url, monitor_id="m", compression=True) as monitor,
    ):
        assert monitor._connection is not None
        assert monitor._connection._protocol.extensions
        events = [
            JobCompleted(
                job_id="j", worker_id="w", result="abc" * 10_000, timestamp=n, completed_at=n
            )
            for n in range(1, 4)
        ]
        server.broadcast(*events)
        assert await take(monitor, 3) == events


async def test_arguments_that_cannot_be_right() -> None:
    url = "ws://127.0.0.1:1"
    wrong: list[dict[str, Any]] = [
        {"monitor_id": ""},
        {"topics": "jobs"},
        {"resume": "nonsense"},
        {"buffer_limit": 0},
        {"max_size": 0},
        {"ping_interval": -1},
    ]
    for arguments in wrong:
        arguments.setdefault("monitor_id", "m")
        with pytest.raises(InvalidArgument):
            async with connect_monitor(url, **arguments):
                pytest.fail("not to be entered")
