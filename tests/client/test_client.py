"""The client against a real server: submitting, watching, results, over broken connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from jobqueue_broadcast import (
    HookRefusal,
    JobAssigned,
    JobCompleted,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    Principal,
    StaticTokens,
)
from jobqueue_broadcast.adapters.websockets import SessionLimits
from jobqueue_broadcast.client import ClientPeer, Gap, connect_client
from jobqueue_broadcast.client_format import (
    ClientCompleteJob,
    ClientJobAccepted,
    ClientJobAssigned,
    ClientJobProgress,
    ClientJobStatusChanged,
)
from jobqueue_broadcast.errors import (
    CommandFailed,
    ConnectionEnded,
    InvalidArgument,
    JobFailedError,
)
from tests.client.harness import BACKOFF, ProxyThread, RealServer, in_time, until

pytestmark = pytest.mark.anyio

Serve = Callable[..., RealServer]
Proxied = Callable[[int], ProxyThread]


def completed(job_id: str, result: Any = None) -> JobCompleted:
    return JobCompleted(job_id=job_id, worker_id="w", result=result)


def progress(job_id: str, value: float) -> JobProgress:
    return JobProgress(job_id=job_id, worker_id="w", progress=value)


async def test_a_job_from_submission_to_result(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_client(server.url, client_id="c") as client:
        job_id = await client.submit("render", payload={"a": 1}, priority=3, workflow_id="wf")
        assert job_id == "render-0"
        watch = client.watch(job_id)
        seen = [await anext(watch)]
        for event in (
            JobAssigned(job_id=job_id, worker_id="w"),
            JobStatusChanged(job_id=job_id, old_status="assigned", new_status="in_progress"),
            progress(job_id, 0.5),
            completed(job_id, {"url": "x"}),
        ):
            server.broadcast(event)
            seen.append(await anext(watch))
        assert [type(update) for update in seen] == [
            ClientJobAccepted,
            ClientJobAssigned,
            ClientJobStatusChanged,
            ClientJobProgress,
            ClientCompleteJob,
        ]
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        assert await client.result(job_id) == {"url": "x"}
        assert [type(update) async for update in client.watch(job_id)] == [
            ClientJobAccepted,
            ClientJobProgress,
            ClientCompleteJob,
        ]
        info = await client.status(job_id)
        assert (info.status, info.result) == ("completed", {"url": "x"})


async def test_failures_are_raised(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_client(server.url, client_id="c") as client:
        failed, cancelled = await client.submit("a"), await client.submit("b")
        server.broadcast(
            JobFailed(job_id=failed, error="out of memory"),
            JobStatusChanged(job_id=cancelled, old_status="pending", new_status="cancelled"),
        )
        for job_id, error in ((failed, "out of memory"), (cancelled, "cancelled")):
            with pytest.raises(JobFailedError) as raised:
                await client.result(job_id)
            assert (raised.value.job_id, raised.value.error) == (job_id, error)


async def test_a_job_of_others_that_ended_long_ago(serve: Serve) -> None:
    server = serve()
    server.broadcast(completed("old", 7))
    async with in_time(), connect_client(server.url, client_id="c") as client:
        assert await client.result("old") == 7
        await client.subscribe("old")


async def test_commands_and_their_refusals(serve: Serve) -> None:
    def submit(command: Any, principal: Principal) -> str:
        raise HookRefusal("not today", "forbidden")

    server = serve(submit=submit)
    async with in_time(), connect_client(server.url, client_id="c") as client:
        with pytest.raises(CommandFailed) as refused:
            await client.submit("x")
        assert (refused.value.code, refused.value.error) == ("forbidden", "not today")
        with pytest.raises(CommandFailed) as unknown:
            await client.status("unknown")
        assert unknown.value.code == "not_found"
        await client.cancel("j")
        assert server.cancelled == ["j"]
        with pytest.raises(InvalidArgument):
            await client.submit("x", payload={"a": object()})
        with pytest.raises(CommandFailed) as invalid:
            await client.submit("")
        assert invalid.value.code == "invalid_field"


async def test_a_job_that_was_let_go_of_is_told(serve: Serve) -> None:
    server = serve(broadcaster={"ended_job_limit": 1})
    server.broadcast(completed("first"), completed("second"))
    async with in_time(), connect_client(server.url, client_id="c") as client:
        with pytest.raises(CommandFailed) as gone:
            await client.result("first")
        assert gone.value.code == "not_found"
        with pytest.raises(CommandFailed):
            await anext(client.watch("first"))


async def test_someone_elses_job_is_not_found(serve: Serve) -> None:
    server = serve(authenticate=StaticTokens({"ta": "a", "tb": "b"}))
    async with (
        in_time(),
        connect_client(server.url, client_id="a", token="ta") as mine,
        connect_client(server.url, client_id="b", token=lambda: "tb") as other,
    ):
        job_id = await mine.submit("x")
        with pytest.raises(CommandFailed) as hidden:
            await other.result(job_id)
        assert hidden.value.code == "not_found"


async def test_unsubscribing_ends_the_watch(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_client(server.url, client_id="c") as client:
        job_id = await client.submit("x")
        watch = client.watch(job_id)
        await anext(watch)
        await client.unsubscribe(job_id)
        with pytest.raises(CommandFailed):
            await anext(watch)
        server.broadcast(completed(job_id, 1))
        assert server.stats().subscriptions == 0
        assert await client.result(job_id) == 1


async def test_a_hundred_results_at_once(serve: Serve, proxied: Proxied) -> None:
    server = serve()
    proxy = proxied(server.port)
    results: dict[str, Any] = {}
    async with in_time(60), connect_client(proxy.url, client_id="c", backoff=BACKOFF) as client:

        async def one(number: int) -> None:
            job_id = await client.submit(f"kind{number}")
            assert job_id.startswith(f"kind{number}-"), "an answer went to the wrong submission"
            results[job_id] = await client.result(job_id)

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(one, number)
            await until(lambda: len(server.submitted) >= 50)
            proxy.cut()
            await until(lambda: len(server.submitted) >= 100)
            for number, job_id in enumerate(server.submitted):
                server.broadcast(progress(job_id, 0.5), completed(job_id, number))
                if number == 50:
                    proxy.cut()
    assert results == {job_id: number for number, job_id in enumerate(server.submitted)}
    assert len(server.submitted) == 100, "a repeated submission became a second job"


async def test_many_jobs_of_others(serve: Serve, proxied: Proxied) -> None:
    """More than a URL can name, and with names it cannot carry; on every connection anew."""
    server = serve(session_limits=SessionLimits(command_rate=10_000, command_burst=10_000))
    proxy = proxied(server.port)
    names = [f"job-{number}-{'x' * 60}" for number in range(300)] + ["with,comma", "ü &=?#/%"]
    results: dict[str, Any] = {}
    async with in_time(60), connect_client(proxy.url, client_id="c", backoff=BACKOFF) as client:

        async def one(name: str) -> None:
            results[name] = await client.result(name)

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(one, name)
            await until(lambda: server.stats().subscriptions == len(names))
            proxy.cut()
            await until(lambda: client.connections == 2)
            server.broadcast(*[completed(name, name) for name in names])
    assert results == {name: name for name in names}


async def test_a_submission_whose_answer_was_cut_off_is_one_job(
    serve: Serve, proxied: Proxied
) -> None:
    server = serve()
    proxy = proxied(server.port)
    async with in_time(), connect_client(proxy.url, client_id="c", backoff=BACKOFF) as client:
        for round_ in range(1, 6):
            await client.cancel("any")  # Answered: what the connection began with is over.
            proxy.withhold()
            jobs: list[str] = []

            async def submit(jobs: list[str] = jobs) -> None:
                jobs.append(await client.submit("x"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(submit)
                await until(lambda: len(server.submitted) == round_)  # noqa: B023
                assert not jobs
                proxy.cut()
                proxy.flow()
            assert jobs == [server.submitted[-1]]
        assert len(server.submitted) == 5
        assert client.connections == 6


async def test_a_submission_during_a_slow_hook_is_one_job(serve: Serve, proxied: Proxied) -> None:
    begun: list[str] = []
    gate: list[bool] = []

    async def submit(command: Any, principal: Principal) -> str:
        begun.append(command.message_id)
        while not gate:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return "slow"

    server = serve(submit=submit)
    proxy = proxied(server.port)
    async with in_time(), connect_client(proxy.url, client_id="c", backoff=BACKOFF) as client:
        jobs: list[str] = []

        async def ask() -> None:
            jobs.append(await client.submit("x"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: len(begun) == 1)
            proxy.cut()
            await until(lambda: client.connections == 2)
            gate.append(True)
        assert jobs == ["slow"]
        assert len(begun) == 1


async def test_nothing_is_shown_twice_however_often_it_is_cut(
    serve: Serve, proxied: Proxied
) -> None:
    server = serve()
    proxy = proxied(server.port)
    steps = 200
    async with in_time(60), connect_client(proxy.url, client_id="c", backoff=BACKOFF) as client:
        job_id = await client.submit("x")
        seen: list[Any] = []

        async def watch() -> None:
            async for update in client.watch(job_id):
                seen.append(update)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            for step in range(steps):
                server.broadcast(progress(job_id, step / steps))
                if step % 20 == 10:
                    connections = client.connections
                    proxy.cut()
                    await until(lambda: client.connections > connections)  # noqa: B023
            proxy.cut()
            server.broadcast(completed(job_id, "done"))
        assert [type(update) for update in seen].count(ClientJobAccepted) == 1
        assert [type(update) for update in seen].count(ClientCompleteJob) == 1
        shown = [update.progress for update in seen if isinstance(update, ClientJobProgress)]
        assert shown == sorted(set(shown))
        assert not any(isinstance(update, Gap) for update in seen), "all of it could be resumed"


async def test_a_gap_is_told_and_the_state_follows(serve: Serve, proxied: Proxied) -> None:
    server = serve(broadcaster={"history_limit": 3})
    proxy = proxied(server.port)
    async with in_time(), connect_client(proxy.url, client_id="c", backoff=BACKOFF) as client:
        job_id, other = await client.submit("x"), await client.submit("y")
        watch, ended = client.watch(job_id), client.watch(other)
        assert isinstance(await anext(watch), ClientJobAccepted)
        assert isinstance(await anext(ended), ClientJobAccepted)
        proxy.withhold()
        server.broadcast(*[progress(job_id, number / 100) for number in range(50)])
        server.broadcast(completed(other, 1), *[progress("z", 0.1) for _ in range(10)])
        proxy.cut()
        proxy.flow()
        gap, newest = await anext(watch), await anext(watch)
        assert isinstance(gap, Gap)
        assert gap.reason == "trimmed"
        assert isinstance(newest, ClientJobProgress)
        assert newest.progress == 0.49
        assert isinstance(await anext(ended), Gap)
        assert isinstance(await anext(ended), ClientCompleteJob)


async def test_watches_that_are_not_read_hold_nobody_up(serve: Serve) -> None:
    server = serve(session_limits=SessionLimits(command_rate=10_000, command_burst=10_000))
    async with in_time(60), connect_client(server.url, client_id="c") as client:
        idle, busy = await client.submit("idle"), await client.submit("busy")
        unread = client.watch(idle)
        await anext(unread)
        for begin in range(0, 5000, 100):
            server.broadcast(*[progress(idle, n / 5000) for n in range(begin, begin + 100)])
        server.broadcast(completed(idle, "kept"), completed(busy, "through"))
        assert await client.result(busy) == "through"
        rest = [update async for update in unread]
        assert [type(update) for update in rest] == [ClientJobProgress, ClientCompleteJob]
        assert rest[0].progress == 4999 / 5000  # type: ignore[union-attr]


async def test_jobs_that_were_let_go_here_are_asked_for_again(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_client(server.url, client_id="c", kept_jobs=1) as client:
        jobs = [await client.submit("x") for _ in range(4)]
        for number, job_id in enumerate(jobs):
            server.broadcast(completed(job_id, number))
        assert await client.result(jobs[3]) == 3
        assert len(client._jobs) == 1
        assert [await client.result(job_id) for job_id in jobs] == [0, 1, 2, 3]


async def test_a_client_of_the_same_id_does_not_mistake_old_jobs_for_new(serve: Serve) -> None:
    """The server sends the states of all its jobs first: thousands of frames, not one answer."""
    limits = SessionLimits(command_rate=10_000, command_burst=10_000)
    server = serve(session_limits=limits)
    async with in_time(60):
        async with connect_client(server.url, client_id="c") as client:
            for number in range(500):
                await client.subscribe(f"old-{number}")
            for number in range(500):
                server.broadcast(completed(f"old-{number}", "x" * 1000))
        for number in range(500):
            server.thread.call(
                lambda number=number: server.broadcaster.accept_job(  # type: ignore[misc]
                    f"old-{number}", Principal(id="anonymous")
                )
            )
        async with connect_client(server.url, client_id="c") as client:
            assert await client.submit("new") == "new-0"


async def test_being_replaced_is_the_end_of_everything_that_waits(serve: Serve) -> None:
    server = serve()
    codes: list[int] = []

    async def raises(call: Callable[[], Any]) -> None:
        with pytest.raises(ConnectionEnded) as ended:
            await call()
        codes.append(ended.value.code)

    async with in_time(), connect_client(server.url, client_id="c", backoff=BACKOFF) as old:
        job_id = await old.submit("x")
        watch = old.watch(job_id)
        await anext(watch)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raises, lambda: old.result(job_id))
            tasks.start_soon(raises, lambda: anext(watch))
            await anyio.wait_all_tasks_blocked()
            async with connect_client(server.url, client_id="c"):
                await until(lambda: len(codes) == 2)
        later: list[Callable[[], Any]] = [
            lambda: old.submit("x"),
            lambda: old.status(job_id),
            lambda: anext(old.watch("another")),
        ]
        for call in later:
            await raises(call)
        assert codes == [4409] * 5


async def test_who_waits_beyond_the_block_is_told(serve: Serve) -> None:
    server = serve()
    ended: list[Exception] = []

    async def wait(client: ClientPeer) -> None:
        with pytest.raises(ConnectionEnded) as raised:
            await client.result("never")
        ended.append(raised.value)

    async with in_time(), anyio.create_task_group() as tasks:
        async with connect_client(server.url, client_id="c") as client:
            tasks.start_soon(wait, client)
            await until(lambda: server.stats().subscriptions == 1)
        await until(lambda: bool(ended))


async def test_a_command_too_large_for_the_server_ends_the_peer(serve: Serve) -> None:
    server = serve()
    async with in_time(), connect_client(server.url, client_id="c", backoff=BACKOFF) as client:
        with pytest.raises(ConnectionEnded) as ended:
            await client.submit("x", payload={"a": "x" * 100_000})
        assert ended.value.code == 1009


async def test_commands_past_the_rate_are_repeated(serve: Serve) -> None:
    server = serve()
    server.broadcast(*[completed(f"j{number}", number) for number in range(150)])
    found: dict[str, Any] = {}
    async with in_time(60), connect_client(server.url, client_id="c") as client:

        async def ask(job_id: str) -> None:
            found[job_id] = (await client.status(job_id)).result

        async with anyio.create_task_group() as tasks:
            for number in range(150):
                tasks.start_soon(ask, f"j{number}")
        assert found == {f"j{number}": number for number in range(150)}
        assert await client.submit("x") == "x-0"
        assert client.connections == 1
