"""What is fuzzed: four ways in, each a function of bytes that must hold whatever the bytes are.

A target raises when something that the wire protocol promises does not hold. It does no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from jobqueue_broadcast import EventBroadcaster, Handshake, JobProgress, Principal
from jobqueue_broadcast.commands import ErrorCode
from jobqueue_broadcast.handshake import Refusal, Refused, parse_target
from jobqueue_broadcast.session import Hooks, Session, SessionLimits
from jobqueue_broadcast.signed_tokens import SignedTokens
from jobqueue_broadcast.testing import ManualClock, RecordingConnection

__all__ = ["TARGETS"]

_UNLIMITED = SessionLimits(command_rate=1e9, command_burst=10**9)
_TOKENS = SignedTokens(b"k" * 32)
_BOB = Principal(id="bob")
MAX_SIZE = 64 * 1024


def frames(data: bytes) -> None:
    """Bytes on an open connection, with and without compression: through to the session."""
    for deflate in (False, True):
        protocol = ServerProtocol(state=State.OPEN, max_size=MAX_SIZE)
        if deflate:
            protocol.extensions = [PerMessageDeflate(True, True, 12, 12)]
        protocol.receive_data(data)
        protocol.receive_eof()
        for event in protocol.events_received():
            assert not isinstance(event, Request | Response)
            assert len(event.data) <= MAX_SIZE
            if event.opcode == 1 and event.fin:
                try:
                    text = bytes(event.data).decode()
                except UnicodeDecodeError:
                    continue  # closed with 1007 by `websockets`
                commands(text.encode())
        assert protocol.close_sent is None or protocol.close_sent.code != 1011, protocol.parser_exc


def commands(data: bytes) -> None:
    """The text of a frame, to a monitor's session and a client's."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    for kind in ("monitor", "client"):
        session, connection = _session(kind)
        ask = session.receive(text)
        while ask is not None:
            ask = ask.answered(ask.call())
        for answer in connection.payloads:
            _check_answer(answer)
        assert not connection.aborted


def handshakes(data: bytes) -> None:
    """A request target, then headers: a target or a documented refusal, and no credential shown."""
    target, _, rest = data.decode("latin-1").partition("\n")
    headers = {"authorization": rest.split("\n")} if rest else {}
    try:
        parsed, query_token = parse_target(target)
        handshake = Handshake(parsed, headers, "192.0.2.1", query_token)
    except Refused as refused:
        _check_refusal(refused.refusal)
        return
    assert 1 <= len(parsed.id) <= 128
    assert _TOKENS(handshake) is None
    if handshake.credential and len(handshake.credential) > 12:
        assert handshake.credential not in repr(handshake)


def backplane(data: bytes) -> None:
    """A payload from other nodes: taken, or dropped and counted; and the next one is taken."""
    broadcaster = EventBroadcaster(clock=ManualClock())
    connection = RecordingConnection()
    broadcaster.add_monitor("m", connection, resume="new")
    broadcaster.intake.receive(1, data)
    broadcaster.intake.receive(2, b'{"type":"job_submitted"')
    before = broadcaster.stats()
    broadcaster.broadcast(JobProgress(job_id="j", worker_id="w", progress=0.5))
    assert broadcaster.stats().events_total == before.events_total + 1
    for frame in connection.frames:
        assert isinstance(frame["type"], str)
    broadcaster.full_state()
    broadcaster.tick()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames,
    "commands": commands,
    "handshakes": handshakes,
    "backplane": backplane,
}


def _session(kind: str) -> tuple[Session, RecordingConnection]:
    broadcaster = EventBroadcaster(clock=ManualClock())
    broadcaster.accept_job("job-1", _BOB)
    connection = RecordingConnection()
    if kind == "monitor":
        subscriber = broadcaster.add_monitor("m", connection)
    else:
        subscriber = broadcaster.add_client("c", connection, principal=_BOB)
    connection.take()
    hooks = Hooks(submit=lambda *_: "job-2", cancel=lambda *_: None)
    return Session(broadcaster, subscriber, hooks, _UNLIMITED), connection


def _check_refusal(refusal: Refusal) -> None:
    assert refusal.status in (400, 404)
    assert len(refusal.text) <= 256


def _check_answer(answer: bytes) -> None:
    decoded: dict[str, Any] = json.loads(answer)
    if decoded["type"] == "error":
        assert len(answer) <= 1024
        assert decoded["code"] in get_args(ErrorCode)
