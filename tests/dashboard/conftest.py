"""A real Chromium, and what the dashboard talks to: the demo server, or a scripted wire."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Route,
    WebSocketRoute,
    expect,
    sync_playwright,
)

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_EXAMPLE = Path(__file__).parents[2] / "examples" / "standalone_server.py"
# A strict policy: the page must work with nothing but itself and its WebSockets.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'"
)


def _find_browser() -> str:
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    reason = f"no browser on PATH (looked for {', '.join(_NAMES)})"
    if os.environ.get("JOBQUEUE_REQUIRE_BROWSER") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


# Module scope: while Playwright runs, no other test of this thread could run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = _find_browser()
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
            ],
        )
        yield browser
        browser.close()


@dataclass
class Seen:
    """What a page did that a good page does not: exceptions, console errors, requests."""

    exceptions: list[str] = field(default_factory=list)
    console_errors: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.exceptions.append(str(error)))
        page.on(
            "console",
            lambda m: self.console_errors.append(m.text) if m.type == "error" else None,
        )
        page.on("request", lambda request: self.addresses.append(request.url))
        page.on("websocket", lambda socket: self.addresses.append(socket.url))


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    yield seen
    assert seen.exceptions == []


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, seen: Seen) -> Iterator[OpenPage]:
    """Open an address in a browser context of its own; keywords go to `new_context`."""
    contexts: list[BrowserContext] = []

    def open_page(url: str, **options: Any) -> Page:
        options.setdefault("viewport", {"width": 1440, "height": 900})
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        seen.watch(page)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()


class DemoServer:
    """`examples/standalone_server.py` as a process that can be restarted on its own port."""

    def __init__(self, *options: str) -> None:
        self.options = options
        self.url = ""
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self._drain: threading.Thread | None = None

    def start(self) -> None:
        process = self._process = subprocess.Popen(
            [sys.executable, str(_EXAMPLE), "--port", str(self.port), *self.options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        printed: list[str] = []
        for line in process.stdout:
            printed.append(line)
            if found := re.search(r"Dashboard:\s+(https?://[^\s/]+:(\d+)/)", line):
                self.url, self.port = found[1], int(found[2])
                break
        else:
            pytest.fail(f"the demo server ended before it printed its address: {printed}")
        self._drain = threading.Thread(target=process.stdout.read)  # or the pipe would fill
        self._drain.start()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if self._drain is not None:
            self._drain.join()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="module")
def dashboard_server() -> Iterator[DemoServer]:
    """The demo server with its simulated workers and machines."""
    server = DemoServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def quiet_server() -> Iterator[DemoServer]:
    """The demo server with workers that are never lost, and no jobs but those submitted."""
    server = DemoServer("--no-simulation")
    try:
        server.start()
        yield server
    finally:
        server.stop()


StartServer = Callable[..., DemoServer]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start a demo server of the test's own, with options, which it may stop and start again."""
    servers: list[DemoServer] = []

    def start_server(*options: str) -> DemoServer:
        server = DemoServer(*options)
        servers.append(server)
        server.start()
        return server

    yield start_server
    for server in servers:
        server.stop()


Frame = dict[str, Any]


class Wire:
    """The server's end of the page's WebSockets, frame by frame: the wire protocol said by hand.

    Each new connection is greeted unless `accepting` is false, or it lacks the `token` there is;
    then it is closed before it opens its mouth, which is all that a browser can tell of a refusal.
    """

    url = "http://dashboard.test/"

    def __init__(self, page: Page) -> None:
        self.page = page
        self.accepting = True
        self.token: str | None = None
        self.snapshot: Frame = {
            "workers": {},
            "machines": {},
            "jobs": {"pending": [], "active": [], "completed": [], "failed": []},
            "system_stats": {},
        }
        self.monitors: list[WebSocketRoute] = []
        self.clients: list[WebSocketRoute] = []
        self.asked: list[Frame] = []
        self.told: list[Frame] = []
        self.answers: dict[str, Callable[[Frame], list[Frame]]] = {}
        self._sequence = 0
        page.route("**/*", self._serve)
        page.route_web_socket(re.compile("/ws/monitor/"), self._monitor)
        page.route_web_socket(re.compile("/ws/client/"), self._client)

    def _serve(self, route: Route) -> None:
        if not route.request.url.startswith(self.url):
            route.abort()
            return
        page = files("jobqueue_broadcast") / "dashboard" / "index.html"
        route.fulfill(
            body=page.read_text(encoding="utf-8"),
            content_type="text/html; charset=utf-8",
            headers={"Content-Security-Policy": _POLICY},
        )

    def position(self) -> str:
        return f"epoch:{self._sequence}"

    def _monitor(self, socket: WebSocketRoute) -> None:
        self.monitors.append(socket)
        if not self.accepting or (self.token and f"token={self.token}" not in socket.url):
            socket.close(code=1011)
            return
        socket.on_message(lambda message: self._hear_monitor(socket, json.loads(message)))
        greeting = {"type": "connected", "timestamp": now(), "position": self.position()}
        socket.send(json.dumps(greeting))

    def _hear_monitor(self, socket: WebSocketRoute, command: Frame) -> None:
        self.asked.append(command)
        if command["type"] == "request_full_state":
            self.send_snapshot(socket)

    def send_snapshot(self, socket: WebSocketRoute) -> None:
        frame = {"type": "full_state_snapshot", "data": self.snapshot, "timestamp": now()}
        socket.send(json.dumps(frame))

    def _client(self, socket: WebSocketRoute) -> None:
        self.clients.append(socket)
        socket.on_message(lambda message: self._hear_client(socket, json.loads(message)))
        greeting = {
            "type": "connection_established",
            "message": "Connected to server",
            "timestamp": now(),
        }
        socket.send(json.dumps(greeting))

    def _hear_client(self, socket: WebSocketRoute, command: Frame) -> None:
        self.told.append(command)
        if answer := self.answers.get(command["type"]):
            for frame in answer(command):
                socket.send(json.dumps({**frame, "timestamp": now()}))

    def broadcast(self, *events: Frame) -> None:
        """Send events to the newest monitor connection, each with its position."""
        for event in events:
            self._sequence += 1
            frame = {**event, "timestamp": now(), "position": self.position()}
            self.monitors[-1].send(json.dumps(frame))

    def tell(self, *frames: Frame) -> None:
        """Send frames to the newest client connection."""
        for frame in frames:
            self.clients[-1].send(json.dumps({**frame, "timestamp": now()}))

    def open(self, suffix: str = "") -> None:
        self.page.goto(self.url + suffix)

    def go_live(self, suffix: str = "") -> None:
        """Open the page, and wait until it has the snapshot that later events build on."""
        self.open(suffix)
        log = self.page.get_by_test_id("event-log-row")
        expect(log.filter(has_text="full_state_snapshot")).to_be_visible()


def now() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def wire(browser: Browser, seen: Seen) -> Iterator[Wire]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    seen.watch(page)
    yield Wire(page)
    context.close()
