"""Each example runs as its docstring says, and does what it says."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.request import urlopen

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.e2e.peers import Peer, peer, without_times
from tests.examples.programs import (
    PATIENCE,
    command_of,
    default_port,
    outcome,
    port_of,
    running,
)

pytestmark = pytest.mark.anyio

STANDALONE = "standalone_server.py"


async def greeted(connected: Peer) -> Peer:
    await connected.next()
    return connected


# --- standalone_server.py ------------------------------------------------------------------------


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a server in which nothing comes by itself."""
    async with running(*command_of(STANDALONE), "--port", "0", "--no-simulation") as program:
        addresses = await program.addresses(3)
        yield port_of(addresses["Client"])
        assert await program.end() == 0


async def result_of(client: Peer, **payload: object) -> dict[str, Any]:
    """Submit a job and return the result in its `complete_job`."""
    await client.send("submit_job", job_type="embed", payload=payload)
    result: dict[str, Any] = (await client.until(type="complete_job"))["result"]
    return result


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_demo_prints_where_to_go_and_closes_gracefully(number: signal.Signals) -> None:
    async with running(*command_of(STANDALONE), "--port", "0") as program:
        addresses = await program.addresses(3)
        port = port_of(addresses["Dashboard"])
        assert port != 0
        assert addresses == {
            "Dashboard": f"http://localhost:{port}/",
            "Monitor": f"ws://localhost:{port}/ws/monitor/monitor-1",
            "Client": f"ws://localhost:{port}/ws/client/client-1",
        }
        async with peer(port, "/ws/monitor/monitor-1") as monitor:
            await greeted(monitor)
            assert await program.end(number) == 0
            assert await monitor.closed() == 1001
        assert await program.rest() == ""


async def test_the_demo_says_where_by_default() -> None:
    with default_port():
        async with running(*command_of(STANDALONE)) as program:
            lines = [await program.line() for _ in range(3)]
            assert lines == [
                "Dashboard: http://localhost:3331/",
                "Monitor:   ws://localhost:3331/ws/monitor/monitor-1",
                "Client:    ws://localhost:3331/ws/client/client-1",
            ]
            assert await program.end() == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not on PATH")
async def test_make_demo() -> None:
    """With this Python in place of one in a new virtual environment."""
    variables = [f"PY={sys.executable}", "INSTALLED=", "DEMO_FLAGS=--port 0"]
    async with running("make", "demo", *variables, session=True) as program:
        assert list(await program.addresses(3)) == ["Dashboard", "Monitor", "Client"]
        os.killpg(program.process.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
        await program.rest()
        await program.status()


async def test_the_demo_shows_machines_workers_jobs_and_figures() -> None:
    async with running(*command_of(STANDALONE), "--port", "0") as program:
        port = port_of((await program.addresses(3))["Monitor"])
        expected = {
            "machine_startup_step",
            "machine_startup_complete",
            "machine_update",
            "worker_connected",
            "worker_status_changed",
            "job_submitted",
            "job_assigned",
            "job_status_changed",
            "update_job_progress",
            "complete_job",
            "system_stats",
        }
        async with peer(port, "/ws/monitor/monitor-1") as monitor:
            while not expected <= set(monitor.types()):
                await monitor.next()
        assert await program.end() == 0


async def test_the_demo_serves_the_dashboard(port: int) -> None:
    def fetch() -> str:
        with urlopen(f"http://localhost:{port}/", timeout=PATIENCE) as response:
            assert response.headers.get_content_type() == "text/html"
            return str(response.read().decode())

    assert "<!doctype html>" in (await asyncio.to_thread(fetch)).lower()


async def test_the_demo_runs_submitted_jobs_and_no_others(port: int) -> None:
    async with (
        peer(port, "/ws/monitor/monitor-1") as monitor,
        peer(port, "/ws/client/client-1") as client,
    ):
        await greeted(client)
        result = await result_of(client, seconds=0.1)
        assert result["status"] == "success"
        assert result["data"]["attempts"] == 1
        steps = [
            frame["progress"] for frame in client.frames if frame["type"] == "update_job_progress"
        ]
        assert steps == sorted(steps)
        assert steps[-1] == 1
        assert client.types()[1:5] == [
            "job_accepted",
            "job_assigned",
            "job_status_changed",
            "update_job_progress",
        ]
        await monitor.until(type="complete_job")
        assert monitor.types().count("job_submitted") == 1


async def test_a_job_of_the_demo_fails_or_is_tried_again(port: int) -> None:
    async with peer(port, "/ws/client/client-1") as client:
        await greeted(client)
        result = await result_of(client, seconds=0.1, error="CUDA out of memory")
        assert result == {"status": "failed", "error": "CUDA out of memory"}
        result = await result_of(client, seconds=0.1, error="store is away", fails=2)
        assert result["status"] == "success"
        assert result["data"]["attempts"] == 3


async def test_a_job_of_the_demo_can_be_cancelled(port: int) -> None:
    async with peer(port, "/ws/client/client-1") as client:
        await client.send("submit_job", job_type="comfyui", payload={"seconds": 600})
        job_id = (await client.until(type="job_accepted"))["job_id"]
        await client.until(type="job_status_changed", status="in_progress")
        await client.send("cancel_job", job_id=job_id)
        await client.until(type="job_status_changed", status="cancelled")
        await client.until(type="job_cancelled", job_id=job_id)
        await client.send("cancel_job", job_id=job_id)
        assert (await client.until(type="error"))["code"] == "not_found"


async def test_the_demo_refuses_a_payload_it_does_not_understand(port: int) -> None:
    async with peer(port, "/ws/client/client-1") as client:
        await client.send("submit_job", job_type="comfyui", payload={"seconds": "long"})
        answer = await client.until(type="error")
        assert answer["code"] == "invalid_field"
        assert "seconds" in answer["error"]


async def test_the_demo_with_a_token() -> None:
    command = [*command_of(STANDALONE), "--port", "0", "--token", "open-sesame"]
    async with running(*command, "--no-simulation") as program:
        lines = [await program.line() for _ in range(4)]
        assert "open-sesame" not in "".join(lines)
        assert "#token=" in lines[3]
        port = port_of(lines[1].partition(" ")[2].strip())
        with pytest.raises(InvalidStatus, match="401"):
            async with peer(port, "/ws/monitor/monitor-1"):
                pass
        async with peer(port, "/ws/monitor/monitor-1", token="open-sesame") as monitor:
            await monitor.until(type="connected")
        assert await program.end() == 0


async def test_the_demo_says_why_it_cannot_start() -> None:
    status, _, why = await outcome(*command_of(STANDALONE), "--host", "0.0.0.0")  # noqa: S104
    assert status == 1
    assert "authenticate" in why
    assert "Traceback" not in why
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        command = [*command_of(STANDALONE), "--host", "127.0.0.1", "--port", number]
        status, _, why = await outcome(*command)
    assert status == 1
    assert "address already in use" in why
    assert "Traceback" not in why


# --- the others ----------------------------------------------------------------------------------


async def test_embed_in_existing_server() -> None:
    async with running(*command_of("embed_in_existing_server.py"), "--port", "0") as program:
        addresses = await program.addresses(2)
        port = port_of(addresses["Monitor"])
        async with (
            peer(port, "/ws/monitor/monitor-1") as monitor,
            connect(addresses["Shout"], proxy=None) as shout,
        ):
            await greeted(monitor)
            await shout.send("hello")
            assert await shout.recv() == "HELLO"
            await monitor.until(type="complete_job")
            assert monitor.types() == ["connected", "job_submitted", "complete_job"]
            for path, status in (("/elsewhere", "404"), ("/ws/monitor/a%20b", "400")):
                with pytest.raises(InvalidStatus, match=status):
                    async with peer(port, path):
                        pass
            assert await program.end() == 0
            assert await monitor.closed() == 1001


async def test_custom_events() -> None:
    status, printed, _ = await outcome(*command_of("custom_events.py"))
    assert status == 0
    received = [
        (who.strip(), without_times(json.loads(frame)))
        for who, _, frame in (line.partition(":") for line in printed.splitlines())
    ]
    preview = {"type": "preview_rendered", "worker_id": "worker-1"}
    assert received == [
        ("monitor", {"type": "connected"}),
        ("client", {"type": "connection_established", "message": "Connected to server"}),
        ("client", {"type": "subscribed", "job_id": "job-1"}),
        ("monitor", {**preview, "job_id": "job-1", "url": "/previews/job-1.png"}),
        ("monitor", {**preview, "job_id": "job-2", "url": "/previews/job-2.png"}),
        ("client", {"type": "update_job_progress", "job_id": "job-1", "progress": 0.5}),
        ("client", {"type": "preview", "job_id": "job-1", "url": "/previews/job-1.png"}),
    ]
