import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobqueue_broadcast.commands import (
    BadFrame,
    CancelJob,
    GetJobStatus,
    Heartbeat,
    MonitorFilters,
    RequestFullState,
    ResyncRequest,
    SubmitJob,
    Subscribe,
    SubscribeProgress,
    UnsubscribeProgress,
    decode_client_command,
    decode_monitor_command,
)
from jobqueue_broadcast.events import encode
from tests import strategies as some
from tests.strict_json import parse

DECODERS = [decode_monitor_command, decode_client_command]
Decode = Callable[[str | bytes], object]

NOW = 1_642_700_000_000


# --- what is understood --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "command"),
    [
        ({"type": "subscribe", "topics": ["jobs"]}, Subscribe(topics=["jobs"])),
        (
            {
                "type": "subscribe",
                "topics": ["jobs", "machines"],
                "filters": {"job_types": ["a"], "worker_ids": ["w"], "priority_range": [1, 5]},
                "message_id": "m",
            },
            Subscribe(
                topics=["jobs", "machines"],
                filters=MonitorFilters(job_types=["a"], worker_ids=["w"], priority_range=(1, 5)),
                message_id="m",
            ),
        ),
        ({"type": "request_full_state"}, RequestFullState()),
        (
            {"type": "resync_request", "since_timestamp": 0, "max_events": 1},
            ResyncRequest(since_timestamp=0, max_events=1),
        ),
        ({"type": "heartbeat"}, Heartbeat()),
        ({"type": "heartbeat", "monitor_id": "m-1"}, Heartbeat(monitor_id="m-1")),
    ],
)
def test_monitor_commands(frame: dict[str, Any], command: object) -> None:
    assert decode_monitor_command(json.dumps(frame)) == command
    assert decode_monitor_command(json.dumps(frame).encode()) == command


@pytest.mark.parametrize(
    ("frame", "command"),
    [
        ({"type": "submit_job", "job_type": "a"}, SubmitJob(job_type="a")),
        (
            {
                "type": "submit_job",
                "message_id": "m",
                "job_type": "a",
                "priority": -5,
                "payload": {"a": [1, None]},
                "requirements": {},
                "workflow_id": "w",
                "workflow_priority": 1,
                "workflow_datetime": 2,
                "current_step": 3,
                "total_steps": 4,
                "customer_id": "c",
            },
            SubmitJob(
                message_id="m",
                job_type="a",
                priority=-5,
                payload={"a": [1, None]},
                requirements={},
                workflow_id="w",
                workflow_priority=1,
                workflow_datetime=2,
                current_step=3,
                total_steps=4,
                customer_id="c",
            ),
        ),
        (
            {"type": "subscribe_progress", "job_id": "j", "message_id": "m"},
            SubscribeProgress(job_id="j", message_id="m"),
        ),
        ({"type": "unsubscribe_progress", "job_id": "j"}, UnsubscribeProgress(job_id="j")),
        ({"type": "get_job_status", "job_id": "j"}, GetJobStatus(job_id="j")),
        ({"type": "cancel_job", "job_id": "j"}, CancelJob(job_id="j")),
    ],
)
def test_client_commands(frame: dict[str, Any], command: object) -> None:
    assert decode_client_command(json.dumps(frame)) == command
    # What later versions of a client add is no error.
    assert decode_client_command(json.dumps(frame | {"newer": 1})) == command


# --- what is not ---------------------------------------------------------------------------------

TOPICS = '{"type":"subscribe","topics":["jobs"]'
SUBMIT = '{"type":"submit_job","job_type":"a"'


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "bad_json"),
        ("{", "bad_json"),
        ("{}}", "bad_json"),
        ("{'type': 1}", "bad_json"),
        ('{"a":' * 100_000, "bad_json"),
        ("\ufeff{}", "bad_json"),
        ('{"type":"\ud800"}', "bad_json"),
        ('{"type":"\\ud800"}', "bad_json"),
        (b'{"type":"\xff"}', "bad_json"),
        (b'{"type":"cancel_job","job_id":"\xff"}', "bad_json"),
        (b'{"type":"heartbeat","monitor_id":"\xff"}', "bad_json"),
        (b"\xff", "bad_json"),
        ("[]", "invalid_field"),
        ("null", "invalid_field"),
        ("5", "invalid_field"),
        ("[" * 100_000, "invalid_field"),
        ("{}", "invalid_field"),
        ('{"type":5}', "invalid_field"),
        ('{"type":null}', "invalid_field"),
        ('{"type":""}', "unknown_type"),
        ('{"type":"nope"}', "unknown_type"),
    ],
)
def test_no_command_at_all(decode: Decode, text: str | bytes, code: str) -> None:
    if isinstance(text, bytes) and decode is decode_client_command and b"heartbeat" in text:
        code = "unknown_type"
    if isinstance(text, bytes) and decode is decode_monitor_command and b"cancel_job" in text:
        code = "unknown_type"
    with pytest.raises(BadFrame) as caught:
        decode(text)
    assert caught.value.code == code


def test_each_kind_of_peer_has_its_own_commands() -> None:
    with pytest.raises(BadFrame) as caught:
        decode_monitor_command('{"type":"submit_job","job_type":"a"}')
    assert caught.value.error == (
        "type: expected one of subscribe, request_full_state, resync_request, heartbeat"
    )
    with pytest.raises(BadFrame) as caught:
        decode_client_command('{"type":"heartbeat"}')
    assert caught.value.error == (
        "type: expected one of submit_job, subscribe_progress, unsubscribe_progress, "
        "get_job_status, cancel_job"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"type":"subscribe"}', "topics: expected, but missing"),
        ('{"type":"subscribe","topics":[]}', "topics: Expected `array` of length >= 1"),
        ('{"type":"subscribe","topics":"jobs"}', "topics: Expected `array`, got `str`"),
        ('{"type":"subscribe","topics":["a",{}]}', "topics[1]: Expected `str`, got `object`"),
        (TOPICS + ',"filters":[]}', "filters: Expected `object`, got `array`"),
        (
            TOPICS + ',"filters":{"evil":1}}',
            "filters: expected only job_types, worker_ids and priority_range",
        ),
        (
            TOPICS + ',"filters":{"job_types":[]}}',
            "filters.job_types: Expected `array` of length >= 1",
        ),
        (
            TOPICS + ',"filters":{"priority_range":[1]}}',
            "filters.priority_range: Expected `array` of length 2",
        ),
        (
            TOPICS + ',"filters":{"priority_range":[1,2,3]}}',
            "filters.priority_range: Expected `array` of length 2",
        ),
        (
            TOPICS + ',"filters":{"priority_range":[1,"evil"]}}',
            "filters.priority_range[1]: Expected `int`, got `str`",
        ),
        (
            '{"type":"resync_request","since_timestamp":1.5}',
            "since_timestamp: Expected `int`, got `float`",
        ),
        ('{"type":"resync_request","since_timestamp":-1}', "since_timestamp: Expected `int` >= 0"),
        ('{"type":"heartbeat","monitor_id":""}', "monitor_id: Expected `str` of length >= 1"),
    ],
)
def test_a_monitor_is_told_the_field_and_what_was_expected(text: str, error: str) -> None:
    with pytest.raises(BadFrame) as caught:
        decode_monitor_command(text)
    assert (caught.value.code, caught.value.error) == ("invalid_field", error)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"type":"submit_job"}', "job_type: expected, but missing"),
        ('{"type":"submit_job","job_type":""}', "job_type: Expected `str` of length >= 1"),
        (SUBMIT + ',"priority":1.5}', "priority: Expected `int`, got `float`"),
        (SUBMIT + ',"priority":' + "9" * 5000 + "}", "priority: Integer value out of range"),
        (SUBMIT + ',"payload":[]}', "payload: Expected `object`, got `array`"),
        (SUBMIT + ',"payload":{"evil":1e999}}', "payload: Number out of range"),
        (
            SUBMIT + ',"requirements":{"evil":{"e":1e999}}}',
            "requirements: Number out of range",
        ),
        (
            SUBMIT + ',"payload":' + '{"e":[' * 300 + "1e999" + "]}" * 300 + "}",
            "payload: Number out of range",
        ),
        (SUBMIT + ',"workflow_id":null}', "workflow_id: Expected `str`, got `null`"),
        (SUBMIT + ',"message_id":5}', "message_id: Expected `str`, got `int`"),
        (
            SUBMIT + ',"message_id":"' + "x" * 129 + '"}',
            "message_id: Expected `str` of length <= 128",
        ),
        ('{"type":"cancel_job"}', "job_id: expected, but missing"),
        ('{"type":"cancel_job","job_id":{"evil":1}}', "job_id: Expected `str`, got `object`"),
        # The first `type` is read by one decoder, the last by the other.
        (
            '{"type":"evil","type":"cancel_job","job_id":"j"}',
            "expected one `type` and the fields it has",
        ),
        ('{"type":5,"type":"cancel_job","job_id":"j"}', "type: Expected `str`"),
    ],
)
def test_a_client_is_told_the_field_and_what_was_expected(text: str, error: str) -> None:
    with pytest.raises(BadFrame) as caught:
        decode_client_command(text)
    assert (caught.value.code, caught.value.error) == ("invalid_field", error)


# --- the answer ----------------------------------------------------------------------------------


def test_the_answer_is_an_error_frame() -> None:
    bad = BadFrame("invalid_field", "job_id: expected, but missing", "m-1")
    assert str(bad) == "job_id: expected, but missing"
    assert parse(encode(bad.reply(NOW))) == {
        "type": "error",
        "timestamp": NOW,
        "error": "job_id: expected, but missing",
        "code": "invalid_field",
        "message_id": "m-1",
    }
    assert "message_id" not in parse(encode(BadFrame("bad_json", "e").reply(NOW)))


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize(
    ("message_id", "echoed"),
    [("m", True), ("\0" * 128, True), ("", False), ("x" * 129, False), (5, False), (None, False)],
)
def test_only_a_valid_message_id_is_echoed(
    decode: Decode, message_id: object, echoed: bool
) -> None:
    text = json.dumps({"type": "nope", "message_id": message_id})
    with pytest.raises(BadFrame) as caught:
        decode(text)
    reply = parse(encode(caught.value.reply(NOW)))
    assert reply.get("message_id") == (message_id if echoed else None)
    assert len(encode(caught.value.reply(NOW))) <= 1024


MARK = "Zq7"  # in no word of ours

_hostile_text = st.builds(lambda text: MARK + text, some.texts)
_hostile_json = st.none() | st.integers() | _hostile_text | st.lists(_hostile_text, max_size=2)
_types = [
    "subscribe", "request_full_state", "resync_request", "heartbeat", "submit_job",
    "subscribe_progress", "unsubscribe_progress", "get_job_status", "cancel_job",
]  # fmt: skip
_keys = [
    "type", "message_id", "topics", "filters", "since_timestamp", "max_events", "monitor_id",
    "job_type", "priority", "payload", "requirements", "workflow_id", "job_id", "current_step",
]  # fmt: skip


def arbitrary(random: Random) -> str:
    """A frame that is nearly right: any fields, some twice, with any values, sometimes cut."""

    def value(depth: int = 0) -> str:
        choice = random.randrange(12 if depth < 3 else 9)
        if choice < 3:
            return json.dumps(MARK + random.choice(some.NASTY))
        if choice < 9:
            return random.choice(
                ["null", "true", "0", "-1", "1.5", "1e999", "9" * 30, "NaN", '""', f'"{MARK}"']
            )
        members = [value(depth + 1) for _ in range(random.randrange(3))]
        if choice == 9:
            return "[" + ",".join(members) + "]"
        return "{" + ",".join(f'"{random.choice(_FILTERS)}":{member}' for member in members) + "}"

    pairs = [("type", json.dumps(random.choice(_types)))]
    for _ in range(random.randrange(5)):
        pairs.append((random.choice([*_keys, MARK]), value()))
    random.shuffle(pairs)
    frame = "{" + ",".join(f'"{key}":{value}' for key, value in pairs) + "}"
    if random.randrange(4):
        return frame
    at = random.randrange(len(frame))
    return frame[:at] + random.choice(some.NASTY) + frame[at + random.randrange(4) :]


_FILTERS = ["job_types", "worker_ids", "priority_range", MARK, "a`b", "unknown field"]


def check_answer(decode: Decode, text: str | bytes) -> None:
    try:
        decode(text)
    except BadFrame as bad:
        reply = bad.reply(NOW)
        payload = encode(reply)
        assert len(payload) <= 1024
        frame = parse(payload)
        echoed = frame.pop("message_id", None)
        assert echoed is None or 1 <= len(echoed) <= 128
        assert MARK not in json.dumps(frame)
        assert set(frame) == {"type", "timestamp", "error", "code"}
        # Our own words: a sentence of ASCII, with nothing of msgspec's beyond types and paths.
        assert re.fullmatch(r"[\w` .,:<>=\[\]-]{1,200}", frame["error"], re.ASCII)


@pytest.mark.parametrize("decode", DECODERS)
def test_5000_arbitrary_frames_raise_nothing_else_and_are_not_repeated(decode: Decode) -> None:
    random = Random(5000)
    for _ in range(2_500):
        check_answer(decode, arbitrary(random))


@given(st.sampled_from(DECODERS), st.sampled_from(_types), st.sampled_from(_keys), _hostile_json)
def test_no_value_of_a_field_is_repeated(
    decode: Decode, of_type: str, key: str, value: object
) -> None:
    check_answer(decode, json.dumps({"type": of_type} | {key: value}))


@given(st.sampled_from(DECODERS), st.text(st.characters(), max_size=64) | st.binary(max_size=64))
@example(decode_client_command, '{"type":"Zq7","type":"cancel_job","job_id":"j"}')
def test_no_input_raises_anything_else(decode: Decode, text: str | bytes) -> None:
    check_answer(decode, text)
