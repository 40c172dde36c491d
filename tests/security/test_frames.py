"""X2: malformed frames and commands get a documented answer or close code, and nothing else."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any, get_args

import pytest

from jobqueue_broadcast import ANONYMOUS, EventBroadcaster, Principal, SubmitJob
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.commands import ErrorCode
from jobqueue_broadcast.session import Hooks, Session, SessionLimits
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.adapters.raw import Raw, frame, in_loop, request, until

CANARY = "CaNaRy"
MOST = 1024
UNLIMITED = SessionLimits(command_rate=1e9, command_burst=10**9, subscriptions_per_client=100)

COMMANDS: list[dict[str, Any]] = [
    {"type": "subscribe", "topics": ["jobs"], "filters": {"priority_range": [1, 2]}},
    {"type": "subscribe", "topics": ["jobs"], "filters": {"job_types": ["a"], "worker_ids": ["b"]}},
    {"type": "request_full_state"},
    {"type": "resync_request", "since_timestamp": 1, "max_events": 2},
    {"type": "heartbeat", "monitor_id": "m"},
    {"type": "submit_job", "job_type": "t", "priority": 1, "payload": {"a": 1}},
    {"type": "subscribe_progress", "job_id": "j"},
    {"type": "unsubscribe_progress", "job_id": "j"},
    {"type": "get_job_status", "job_id": "j"},
    {"type": "cancel_job", "job_id": "j"},
]

ANSWERS = {
    "error", "subscribed", "unsubscribed", "full_state_snapshot", "resync_response",
    "heartbeat_ack", "job_status", "job_cancelled", "job_accepted",
}  # fmt: skip


def nested(rng: random.Random) -> Any:
    value: Any = CANARY
    for _ in range(rng.randrange(60)):
        value = [value] if rng.random() < 0.5 else {CANARY: value}
    return value


def odd_value(rng: random.Random) -> Any:
    return rng.choice([
        None, True, -1, 0, 1.5, 10**30, -(2**63) - 1, 2**63, 1e308, "", CANARY, CANARY * 300, [],
        {}, [CANARY], {CANARY: CANARY}, [1, 2, 3], [2, 1], ["jobs", CANARY], "\ud800", "\x00",
        nested(rng), rng.random(),
    ])  # fmt: skip


def odd_command(rng: random.Random) -> str:
    """A command with something wrong in it, or a thing that is none."""
    command = json.loads(json.dumps(rng.choice(COMMANDS)))
    if rng.random() < 0.3:
        command["message_id"] = rng.choice(
            ["ok", CANARY * 40, 7, None, "", {"a": CANARY}, "\u2028"]
        )
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice([*command, "filters", "type", "job_id", CANARY])
        if rng.random() < 0.2:
            command.pop(name, None)
        else:
            command[name] = odd_value(rng)
    return json.dumps(command, ensure_ascii=rng.random() < 0.5)


def odd_text(rng: random.Random) -> str:
    """A text frame: text, because `websockets` has refused by then what is not UTF-8."""
    text = odd_command(rng)
    kind = rng.randrange(8)
    if kind == 0:
        cut = rng.randrange(len(text) + 1)
        text = text[:cut] + rng.choice(["", "\x00", '"', "}", "\\u", CANARY]) + text[cut + 1 :]
    elif kind == 1:
        text = rng.choice(["[" * 30_000, '{"type":' * 8_000, '{"a":' * 5000 + "1" + "}" * 5000])
    elif kind == 2:
        text = rng.choice([
            "", " ", "null", "NaN", "[]", "1", '"', "{}", "\ufeff{}", "-", "1e999999", "9" * 5000,
            '{"type":NaN}', '{"type":"heartbeat"}' * 2,
        ])  # fmt: skip
    elif kind == 3:
        text = text.replace("1", rng.choice(["1e400", "-0", "01", "0x1", "Infinity", "1" * 400]))
    return text.encode("utf-8", "replace").decode()


def check_answer(answer: bytes, answers: Counter[str]) -> None:
    assert len(answer) <= MOST or b'"type":"error"' not in answer[:100]
    decoded = json.loads(answer)
    assert decoded["type"] in ANSWERS
    answers[decoded.get("code", decoded["type"])] += 1
    if decoded["type"] == "error":
        decoded.pop("message_id", None)
        assert decoded["code"] in get_args(ErrorCode)
        assert CANARY not in json.dumps(decoded)


def session(broadcaster: EventBroadcaster, kind: str) -> tuple[Session, RecordingConnection]:
    connection = RecordingConnection()
    if kind == "monitor":
        subscriber = broadcaster.add_monitor("m", connection)
    else:
        subscriber = broadcaster.add_client("c", connection)
    connection.take()
    hooks = Hooks(submit=lambda *_: "job-1", cancel=lambda *_: None)
    return Session(broadcaster, subscriber, hooks, UNLIMITED), connection


@pytest.mark.parametrize("count", [8_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_every_frame_gets_a_documented_answer(count: int) -> None:
    rng = random.Random(2)
    broadcaster = EventBroadcaster(clock=ManualClock())
    answers: Counter[str] = Counter()
    for kind in ("monitor", "client"):
        talking, connection = session(broadcaster, kind)
        for _ in range(count // 2):
            ask = talking.receive(odd_text(rng))
            while ask is not None:
                ask = ask.answered(ask.call())
            for answer in connection.payloads:
                check_answer(answer, answers)
            connection.payloads.clear()
            assert connection.closed is None
            assert not connection.aborted
    errors = sum(answers[code] for code in get_args(ErrorCode))
    print(f"X2: {count} frames to sessions, {errors} errors, 0 exceptions, 0 echoes: "
          f"{dict(answers.most_common())}")  # fmt: skip
    assert errors > count // 3


def wire_faults(rng: random.Random) -> tuple[bytes, set[int | None]]:
    """A frame that is wrong as a frame, and the close codes it may get."""
    size = rng.randrange(0, 200)
    junk = rng.randbytes(size)
    faults: list[tuple[bytes, set[int | None]]] = [
        (frame(b"\xff" + junk), {1007}),
        (frame("é".encode()[:1]), {1007}),
        (frame(junk, opcode=2), {1003}),
        (frame(b"x" * 65_537), {1009}),
        (b"\x81\xff" + (2**62).to_bytes(8) + bytes(4), {1009}),
        (b"\x81\xff" + (2**63).to_bytes(8) + bytes(4), {1002, 1009}),
        (b"\x81\x05hello", {1002}),
        (frame(junk, rsv=rng.choice([0x10, 0x20, 0x40])), {1002}),
        (frame(junk, opcode=rng.choice([3, 4, 5, 6, 7, 11, 15])), {1002}),
        (frame(junk, opcode=0), {1002}),
        (frame(b"x", opcode=9, final=False), {1002}),
        (frame(b"x" * 126, opcode=9), {1002}),
        (frame(b"a", final=False) + frame(b"b"), {1002}),
        (frame(b"\x00", opcode=8), {1002}),
        (frame((rng.choice([0, 999, 1004, 1005, 1006, 1015, 5000])).to_bytes(2), opcode=8), {1002}),
        (frame(b"\x03\xe8\xff", opcode=8), {1002, 1007}),
    ]  # fmt: skip
    return rng.choice(faults)


@pytest.mark.parametrize("count", [600, pytest.param(5_000, marks=pytest.mark.soak)])
def test_every_broken_frame_gets_a_documented_close_code(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    codes: Counter[int | None] = Counter()

    @in_loop
    async def scenario() -> None:
        rng = random.Random(3)
        broadcaster = EventBroadcaster()
        async with serve(broadcaster, "127.0.0.1", 0) as server:
            for number in range(count):
                sent, expected = wire_faults(rng)
                with await Raw.connect(server.port, request(f"/ws/client/c{number % 50}")) as peer:
                    assert await peer.status() == 101
                    await peer.send(sent)
                    code = await peer.close_code()
                    codes[code] += 1
                    assert code in expected, (sent[:20], code)
            await until(lambda: server.endpoint.stats().connections == 0)

    scenario()
    print(f"X2: {count} broken frames over sockets, 0 exceptions: {dict(codes.most_common())}")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("count", [3_000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_malformed_commands_over_sockets_leave_others_served(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    answers: Counter[str] = Counter()

    def submit(_: SubmitJob, __: Principal) -> str:
        return "job-1"

    @in_loop
    async def scenario() -> None:
        rng = random.Random(4)
        async with serve(
            EventBroadcaster(), "127.0.0.1", 0, submit=submit, session_limits=UNLIMITED
        ) as server:
            for kind in ("monitor", "client"):
                with await Raw.connect(server.port, request(f"/ws/{kind}/x")) as peer:
                    assert await peer.status() == 101
                    await peer.frame()
                    for _ in range(count // 2):
                        await peer.send(frame(odd_text(rng).encode()))
                        await peer.send(frame(b'{"type":"nonsense","message_id":"end"}'))
                        await read_to_the_end(peer, answers)

    scenario()
    print(f"X2: {count} commands over sockets, 0 exceptions: {dict(answers.most_common())}")
    assert not [record for record in caplog.records if record.exc_info]


async def read_to_the_end(peer: Raw, answers: Counter[str]) -> None:
    while True:
        found = await peer.frame()
        assert found is not None
        assert found[0] == 0x81, found
        check_answer(found[1], answers)
        if json.loads(found[1]).get("message_id") == "end":
            return


def test_the_anonymous_principal_is_what_these_sessions_have() -> None:
    # So that what was tried above was tried with every right.
    talking, _ = session(EventBroadcaster(), "monitor")
    assert talking.subscriber.principal is ANONYMOUS
