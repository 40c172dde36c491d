"""X5: with every logger at DEBUG, a token is found nowhere but where the peer put it."""

from __future__ import annotations

import asyncio
import copy
import io
import logging
import pickle
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from websockets.asyncio.server import serve as websockets_serve

from jobqueue_broadcast import EventBroadcaster, Handshake, Principal, StaticTokens
from jobqueue_broadcast.adapters.websockets import WebSocketEndpoint, serve
from jobqueue_broadcast.metrics import StatsCollector
from jobqueue_broadcast.signed_tokens import SignedTokens
from tests.adapters.raw import Raw, frame, in_loop, request, until

CANARY = "tok3n-Xc4n4ryX"
ENCODED = "".join(f"%{ord(char):02x}" for char in CANARY)
SPELLINGS = (CANARY, ENCODED, ENCODED.upper(), CANARY.lower())


class Everything(logging.Handler):
    """Keeps all a handler could write of a record: its text, its traceback, its attributes."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = io.StringIO()
        self.records = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.records += 1
        self.text.write(logging.Formatter("%(message)s").format(record) + "\n")
        self.text.write(repr(record.__dict__) + "\n")
        if record.exc_info and record.exc_info[1] is not None:
            full = traceback.TracebackException.from_exception(
                record.exc_info[1], capture_locals=True
            )
            self.text.write("".join(full.format()))


@pytest.fixture
def logs() -> Iterator[Everything]:
    handler = Everything()
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in root.manager.loggerDict}
    before, names = root.level, ["jobqueue_broadcast", "jobqueue_broadcast.websockets", "asyncio",
                                 "websockets", "websockets.server"]  # fmt: skip
    root.addHandler(handler)
    for logger in (root, *map(logging.getLogger, names)):
        logger.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)
    for name in names:
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


def found_in(text: str) -> int:
    return sum(text.count(spelling) for spelling in SPELLINGS)


HANDSHAKES = [
    request("/ws/monitor/m", f"Authorization: Bearer {CANARY}"),
    request(f"/ws/monitor/m?token={CANARY}"),
    request(f"/ws/monitor/m?topics=jobs&TOKEN={CANARY}&token={CANARY}"),
    request(f"/ws/monitor/m?token={ENCODED}"),
    request(f"/ws/monitor/m?%74oken={CANARY}"),
    request("/ws/monitor/m", f"Cookie: session={CANARY}"),
    request("/ws/monitor/m", f"X-Api-Key: {CANARY}"),
    request("/ws/monitor/m", f"Sec-WebSocket-Protocol: bearer, {CANARY}"),
    request("/ws/monitor/m", f"Authorization: Bearer {CANARY}", f"Authorization: Bearer {CANARY}"),
    request("/ws/monitor/m", f"Authorization: Basic {CANARY}", f"Proxy-Authorization: {CANARY}"),
    request(f"/ws/monitor/bad id?token={CANARY}"),
    request(f"/elsewhere?token={CANARY}", f"Authorization: Bearer {CANARY}"),
    request(f"/ws/monitor/m?token={CANARY}&token={CANARY}"),
    request(f"/ws/monitor/m?token={CANARY}&topics={CANARY}"),
    request(f"/ws/monitor/m?token={CANARY}", "Origin: http://evil.example"),
    request(f"/ws/monitor/m?token={CANARY}").replace(b"Upgrade: websocket", b"Upgrade: nothing"),
    request(f"/ws/monitor/m?token={CANARY}", f"Bad Header{CANARY}: {CANARY}"),
    request("/ws/monitor/m", f"Authorization: Bearer {CANARY}\x00"),
    request("/ws/monitor/m", f"Authorization: Bearer {CANARY}", "Content-Length: 7"),
    request(f"/ws/monitor/m?token={CANARY}{'x' * 9000}"),
    request("/ws/monitor/m", f"Authorization: Bearer {CANARY * 700}"),
    f"GET /ws/monitor/m?token={CANARY} and more HTTP/1.1\r\n\r\n".encode(),
    f"GET /ws/monitor/m?token={CANARY}\r\n\r\n".encode(),
    f"{CANARY}\r\n\r\n".encode(),
    request(f"/ws/monitor/m?token={CANARY}", method="POST"),
]


def failing(handshake: Handshake) -> Principal:
    """A host's `authenticate` as they are written: the error names what it looked for."""
    known: dict[str | None, Principal] = {}
    return known[handshake.credential]


AUTHENTICATE: dict[str, Any] = {
    "good": StaticTokens({CANARY: "somebody"}),
    "wrong": StaticTokens({"another": "somebody"}),
    "signed": SignedTokens(b"x" * 32),
    "failing": failing,
}


@pytest.mark.parametrize("name", AUTHENTICATE)
@pytest.mark.parametrize("own_server", [True, False])
def test_no_log_error_repr_or_figure_holds_a_token(
    name: str, own_server: bool, logs: Everything
) -> None:
    shown: list[object] = []
    authenticate = AUTHENTICATE[name]

    def looking(handshake: Handshake) -> Any:
        shown.extend((repr(handshake), str(handshake), f"{handshake!s}", repr([handshake])))
        for leak in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError):
                leak(handshake)
        return authenticate(handshake)

    @in_loop
    async def scenario() -> None:
        asyncio.get_running_loop().set_debug(True)
        broadcaster = EventBroadcaster()
        if own_server:
            async with serve(broadcaster, "127.0.0.1", 0, authenticate=looking) as server:
                await try_all(server.port, server.endpoint)
        else:
            endpoint = WebSocketEndpoint(broadcaster, authenticate=looking)
            async with (
                websockets_serve(
                    endpoint.handle,
                    "127.0.0.1",
                    0,
                    process_request=endpoint.process_request,
                    create_connection=endpoint.connection_class,
                ) as host,
                endpoint.running(),
            ):
                await try_all(host.sockets[0].getsockname()[1], endpoint)
                await endpoint.close(5.0)

    async def try_all(port: int, endpoint: WebSocketEndpoint) -> None:
        for sent in HANDSHAKES:
            with await Raw.connect(port, sent) as peer:
                if await peer.status() == 101:
                    await peer.send(frame(b'{"type":"heartbeat"}'))
                    await peer.frame()
                    shown.extend(map(repr, endpoint.broadcaster.subscribers()))
        await until(lambda: endpoint.stats().connections == 0)
        registry = CollectorRegistry()
        registry.register(StatsCollector(endpoint.broadcaster.stats, endpoint.stats))
        shown.extend((
            generate_latest(registry), repr(vars(endpoint)), repr(vars(endpoint.gate)),
            repr(authenticate), repr(endpoint.stats()), repr(endpoint.broadcaster.stats()),
        ))  # fmt: skip

    scenario()
    assert logs.records > 100
    leaks = found_in(logs.text.getvalue()) + sum(found_in(str(each)) for each in shown)
    print(f"X5: {len(HANDSHAKES)} handshakes with a canary ({name}), {logs.records} log records, "
          f"{len(shown)} reprs and figures: {leaks} occurrences")  # fmt: skip
    assert leaks == 0
