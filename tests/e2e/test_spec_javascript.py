"""The two usage examples of the specification, as they are, in a real Chromium against a server.

`spec_examples/*.js` are the examples word for word. The page brings the functions they call, and a
`WebSocket` for which `localhost:3331` is wherever the test's server listens.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jobqueue_broadcast import (
    ANONYMOUS,
    MachineUpdate,
    SubmitJob,
    WorkerConnected,
    WorkerData,
)
from jobqueue_broadcast.adapters.websockets import BroadcastServer
from tests.e2e.conftest import Start
from tests.e2e.peers import PATIENCE, Host

playwright_api = pytest.importorskip("playwright.async_api")

pytestmark = [pytest.mark.anyio, pytest.mark.browser]

EXAMPLES = Path(__file__).parent / "spec_examples"

# What the examples leave to the application; each call is noted.
STUBS = """
const Native = WebSocket;
window.WebSocket = class extends Native {
  constructor(url) {
    super(url.replace('localhost:3331', location.host));
    this.addEventListener('message', () => window.greeted = true);
  }
};
window.calls = [];
for (const name of ['updateJobsList', 'updateWorkerStatus', 'updateMachineStatus',
                    'trackJob', 'updateProgress', 'resolveJob', 'rejectJob'])
  window[name] = (...given) => calls.push([name, ...given]);
console.log = (...given) => calls.push(['console.log', ...given]);
"""


@pytest.fixture
async def page() -> AsyncIterator[Any]:
    paths = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    path = next(filter(None, paths), None)
    if path is None:
        reason = "no browser on PATH (looked for chromium, chromium-browser, google-chrome)"
        if os.environ.get("JOBQUEUE_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    async with playwright_api.async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = await browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        await page.add_init_script(STUBS)
        yield page
        await browser.close()


async def run(page: Any, server: BroadcastServer, example: str) -> None:
    """Run an example on a page of the server's origin, until the server has greeted it."""
    await page.goto(f"http://localhost:{server.port}/a-page-that-does-not-exist")
    await page.add_script_tag(content=(EXAMPLES / example).read_text(encoding="utf-8"))
    await page.wait_for_function("window.greeted")


async def calls(page: Any, count: int) -> list[list[Any]]:
    """Return the calls the example made, once there are as many."""
    await page.wait_for_function("count => calls.length >= count", arg=count)
    made: list[list[Any]] = await page.evaluate("calls")
    return made


async def test_the_monitor_example(page: Any, host: Host, start: Start) -> None:
    server = await start()
    await run(page, server, "monitor.js")

    worker = WorkerData(id="worker-1", status="idle", connected_at=1)
    host.broadcast(WorkerConnected(worker_id="worker-1", machine_id="m-1", worker_data=worker))
    host.broadcast(MachineUpdate(machine_id="m-1", status_data={"cpu_percent": 5}))
    await host.submit(SubmitJob(job_type="comfyui"), ANONYMOUS)

    workers, machines, jobs = await calls(page, 3)
    assert (workers[0], workers[1]["id"]) == ("updateWorkerStatus", "worker-1")
    assert machines == ["updateMachineStatus", "m-1", {"cpu_percent": 5}]
    assert (jobs[0], jobs[1]["id"], jobs[1]["job_type"]) == ("updateJobsList", "job-1", "comfyui")


async def test_the_client_example(page: Any, host: Host, start: Start) -> None:
    server = await start()
    await run(page, server, "client.js")

    for message_id in ("good", "bad"):
        await page.evaluate(
            "id => ws.send(JSON.stringify({type: 'submit_job', job_type: 't', message_id: id}))",
            message_id,
        )
    await calls(page, 3)
    host.progress("job-1", "worker-1", 0.5)
    host.complete("job-1", "worker-1", {"url": "/cat.png"})
    host.fail("job-2", "worker-1", "CUDA out of memory")

    assert await calls(page, 6) == [
        ["console.log", "Connected:", "Connected to server"],
        ["trackJob", "job-1", "queued"],
        ["trackJob", "job-2", "queued"],
        ["updateProgress", "job-1", 0.5],
        ["resolveJob", "job-1", {"url": "/cat.png"}],
        ["rejectJob", "job-2", "CUDA out of memory"],
    ]
