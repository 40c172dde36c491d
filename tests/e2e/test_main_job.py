"""The main job, over real sockets: one monitor and two clients of a queue."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from websockets.asyncio.client import connect as websockets_connect
from websockets.exceptions import InvalidStatus

from jobqueue_broadcast import (
    CloseCode,
    EventBroadcaster,
    Handshake,
    JobAssigned,
    JobCompleted,
    JobData,
    JobFailed,
    JobProgress,
    JobSubmitted,
    MachineUpdate,
    Principal,
    Refusal,
    StaticTokens,
    SubmitJob,
    SystemCounts,
    SystemStats,
    WorkerConnected,
    WorkerData,
)
from jobqueue_broadcast.adapters.websockets import BroadcastServer, ConnectionLimits
from tests.e2e.conftest import Connect, Start
from tests.e2e.peers import Frame, Host, Peer, peer, without_times

pytestmark = pytest.mark.anyio


async def everything_so_far(client: Peer) -> list[Frame]:
    """Return all a client was sent until now, without the times and the greeting."""
    await client.send("get_job_status", job_id="no-such-job", message_id="fence")
    await client.until(message_id="fence")
    return [without_times(frame) for frame in client.frames[1:-1]]


async def test_one_monitor_and_two_clients(host: Host, start: Start, connect: Connect) -> None:
    server = await start()
    monitor = await connect(server, "/ws/monitor/monitor-1")
    first = await connect(server, "/ws/client/client-1")
    second = await connect(server, "/ws/client/client-2")

    host.broadcast(
        WorkerConnected(
            worker_id="worker-1",
            machine_id="machine-1",
            worker_data=WorkerData(
                id="worker-1", status="idle", capabilities={"gpu_count": 2}, connected_at=1
            ),
        )
    )
    await first.send(
        "submit_job", job_type="comfyui", priority=5, payload={"prompt": "a cat"}, message_id="m-1"
    )
    await first.until(type="job_accepted")
    await second.send("submit_job", job_type="upscale")
    await second.until(type="job_accepted")
    host.assign("job-1", "worker-1")
    host.assign("job-2", "worker-2")
    host.start("job-1", "worker-1")
    host.progress("job-2", "worker-2", 0.25)
    host.progress("job-1", "worker-1", 0.5)
    host.complete("job-1", "worker-1", {"url": "/cat.png"})
    host.fail("job-2", "worker-2", "CUDA out of memory")
    host.broadcast(SystemStats(stats=SystemCounts(total_jobs=2, completed_jobs=1, failed_jobs=1)))

    # Each client: its own job, in EmProps format.
    assert await everything_so_far(first) == [
        {"type": "job_accepted", "job_id": "job-1", "status": "queued"},
        {"type": "job_assigned", "job_id": "job-1", "worker_id": "worker-1"},
        {"type": "job_status_changed", "job_id": "job-1", "status": "in_progress"},
        {"type": "update_job_progress", "job_id": "job-1", "progress": 0.5},
        {
            "type": "complete_job",
            "job_id": "job-1",
            "worker_id": "worker-1",
            "result": {"status": "success", "data": {"url": "/cat.png"}},
        },
    ]
    assert await everything_so_far(second) == [
        {"type": "job_accepted", "job_id": "job-2", "status": "queued"},
        {"type": "job_assigned", "job_id": "job-2", "worker_id": "worker-2"},
        {"type": "update_job_progress", "job_id": "job-2", "progress": 0.25},
        {
            "type": "complete_job",
            "job_id": "job-2",
            "worker_id": "worker-2",
            "result": {"status": "failed", "error": "CUDA out of memory"},
        },
    ]

    # The monitor: all there was, in order, in the original format.
    await monitor.until(type="system_stats")
    submitted = {"type": "job_submitted", "job_id": "job-1"}
    described = {"id": "job-1", "job_type": "comfyui", "status": "pending", "priority": 5}
    assert monitor.timeless() == [
        {"type": "connected"},
        {
            "type": "worker_connected",
            "worker_id": "worker-1",
            "machine_id": "machine-1",
            "worker_data": {
                "id": "worker-1",
                "status": "idle",
                "capabilities": {"gpu_count": 2},
                "connected_at": 1,
                "jobs_completed": 0,
                "jobs_failed": 0,
            },
        },
        {**submitted, "job_data": {**described, "payload": {"prompt": "a cat"}}},
        {
            "type": "job_submitted",
            "job_id": "job-2",
            "job_data": {"id": "job-2", "job_type": "upscale", "status": "pending", "priority": 0},
        },
        *(
            {
                "type": "job_assigned",
                "job_id": f"job-{number}",
                "worker_id": f"worker-{number}",
                "old_status": "pending",
                "new_status": "assigned",
            }
            for number in (1, 2)
        ),
        {
            "type": "job_status_changed",
            "job_id": "job-1",
            "old_status": "assigned",
            "new_status": "in_progress",
            "worker_id": "worker-1",
        },
        *(
            {
                "type": "update_job_progress",
                "job_id": f"job-{number}",
                "worker_id": f"worker-{number}",
                "progress": progress,
            }
            for number, progress in ((2, 0.25), (1, 0.5))
        ),
        {
            "type": "complete_job",
            "job_id": "job-1",
            "worker_id": "worker-1",
            "result": {"url": "/cat.png"},
        },
        {
            "type": "job_failed",
            "job_id": "job-2",
            "error": "CUDA out of memory",
            "worker_id": "worker-2",
        },
        {
            "type": "system_stats",
            "stats": {
                "total_workers": 0,
                "active_workers": 0,
                "total_jobs": 2,
                "pending_jobs": 0,
                "active_jobs": 0,
                "completed_jobs": 1,
                "failed_jobs": 1,
            },
        },
    ]


NOW = 1_642_700_000_000
DATA = JobData(
    id="job-123",
    job_type="comfyui",
    priority=5,
    requirements={"service_type": "comfyui"},
    created_at=NOW,
)
TOLD: dict[str, tuple[Any, Frame, Frame]] = {
    # What is broadcast, and the example frames of the specification: a monitor's, a client's.
    "submitted": (
        JobSubmitted(job_id="job-123", job_data=DATA, timestamp=NOW),
        {
            "type": "job_submitted",
            "job_id": "job-123",
            "job_data": {
                "id": "job-123",
                "job_type": "comfyui",
                "status": "pending",
                "priority": 5,
                "requirements": {"service_type": "comfyui"},
                "created_at": NOW,
            },
            "timestamp": NOW,
        },
        {"type": "job_accepted", "job_id": "job-123", "status": "queued", "timestamp": NOW},
    ),
    "progress": (
        JobProgress(job_id="job-123", worker_id="worker-1", progress=0.5, timestamp=NOW),
        {
            "type": "update_job_progress",
            "job_id": "job-123",
            "worker_id": "worker-1",
            "progress": 0.5,
            "timestamp": NOW,
        },
        {"type": "update_job_progress", "job_id": "job-123", "progress": 0.5, "timestamp": NOW},
    ),
    "completed": (
        JobCompleted(job_id="job-123", worker_id="worker-1", result={"n": 1}, timestamp=NOW),
        {
            "type": "complete_job",
            "job_id": "job-123",
            "worker_id": "worker-1",
            "result": {"n": 1},
            "completed_at": NOW,
            "timestamp": NOW,
        },
        {
            "type": "complete_job",
            "job_id": "job-123",
            "worker_id": "worker-1",
            "result": {"status": "success", "data": {"n": 1}},
            "timestamp": NOW,
        },
    ),
    "failed": (
        JobFailed(job_id="job-123", worker_id="worker-1", error="Error message", timestamp=NOW),
        {
            "type": "job_failed",
            "job_id": "job-123",
            "error": "Error message",
            "worker_id": "worker-1",
            "failed_at": NOW,
            "timestamp": NOW,
        },
        {
            "type": "complete_job",
            "job_id": "job-123",
            "worker_id": "worker-1",
            "result": {"status": "failed", "error": "Error message"},
            "timestamp": NOW,
        },
    ),
}


@pytest.mark.parametrize("told", TOLD)
async def test_the_frames_of_the_specification(
    told: str, host: Host, start: Start, connect: Connect
) -> None:
    event, monitors_frame, clients_frame = TOLD[told]
    server = await start()
    monitor = await connect(server, "/ws/monitor/monitor-1")
    client = await connect(server, "/ws/client/client-1?jobs=job-123")
    assert (await client.next())["type"] == "subscribed"

    host.broadcast(event)

    assert await monitor.next() == monitors_frame
    assert await client.next() == clients_frame


async def test_greetings(host: Host, start: Start, connect: Connect) -> None:
    server = await start()
    monitor = await connect(server, "/ws/monitor/monitor-1")
    client = await connect(server, "/ws/client/client-1")
    assert monitor.timeless() == [{"type": "connected"}]
    assert client.timeless() == [
        {"type": "connection_established", "message": "Connected to server"}
    ]


@pytest.mark.parametrize("when", ["before", "inside", "after", "never"])
async def test_a_submitter_is_told_once_that_its_job_was_accepted(
    when: str, host: Host, start: Start, connect: Connect
) -> None:
    event = JobSubmitted(job_id="job-1", job_data=JobData(id="job-1", job_type="t", created_at=1))

    def submit(command: SubmitJob, principal: Principal) -> str:
        if when == "inside":
            host.broadcast(event)
        return "job-1"

    server = await start(submit=submit)
    client = await connect(server, "/ws/client/client-1")
    if when == "before":
        host.broadcast(event)
    await client.send("submit_job", job_type="t")
    await client.until(type="job_accepted")
    if when == "after":
        host.broadcast(event)
    host.progress("job-1", "worker-1", 1)
    await client.until(type="update_job_progress")
    assert client.types() == ["connection_established", "job_accepted", "update_job_progress"]


async def test_a_job_that_ended_before_its_submitter_was_answered_is_not_lost(
    host: Host, start: Start, connect: Connect
) -> None:
    async def submit(command: SubmitJob, principal: Principal) -> str:
        job_id = await host.submit(command, principal)
        host.progress(job_id, "worker-1", 0.5)
        host.complete(job_id, "worker-1", "done")
        return job_id

    client = await connect(await start(submit=submit), "/ws/client/client-1")
    await client.send("submit_job", job_type="t")
    outcome = await client.until(type="complete_job")
    assert outcome["result"] == {"status": "success", "data": "done"}
    assert client.types() == ["connection_established", "job_accepted", "complete_job"]


async def test_a_repeated_submission_makes_one_job(
    host: Host, start: Start, connect: Connect
) -> None:
    client = await connect(await start(), "/ws/client/client-1")
    for _ in range(2):
        await client.send("submit_job", job_type="t", message_id="m-1")
        assert (await client.next())["job_id"] == "job-1"
    assert list(host.submitted) == ["job-1"]


async def test_after_the_outcome_a_client_hears_no_more_of_a_job(
    host: Host, start: Start, connect: Connect
) -> None:
    server = await start()
    client = await connect(server, "/ws/client/client-1")
    monitor = await connect(server, "/ws/monitor/monitor-1?topics=jobs")
    await client.send("submit_job", job_type="t")
    await client.until(type="job_accepted")
    host.complete("job-1", "worker-1", None)
    host.progress("job-1", "worker-2", 0.9)
    host.fail("job-1", "worker-2", "too late")
    assert [frame["type"] for frame in await everything_so_far(client)] == [
        "job_accepted",
        "complete_job",
    ]
    await monitor.until(type="job_failed")
    assert monitor.types()[-3:] == ["complete_job", "update_job_progress", "job_failed"]


async def test_cancel(host: Host, start: Start, connect: Connect) -> None:
    server = await start()
    client = await connect(server, "/ws/client/client-1")
    await client.send("submit_job", job_type="t")
    await client.until(type="job_accepted")
    await client.send("cancel_job", job_id="job-1", message_id="m-1")
    answer = await client.until(type="job_cancelled")
    assert without_times(answer) == {
        "type": "job_cancelled",
        "job_id": "job-1",
        "message_id": "m-1",
    }
    assert [job_id for job_id, _ in host.cancelled] == ["job-1"]
    assert {"type": "job_status_changed", "job_id": "job-1", "status": "cancelled"} in (
        client.timeless()
    )
    await client.send("get_job_status", job_id="job-1")
    assert (await client.until(type="job_status"))["job"]["status"] == "cancelled"


async def test_a_refusal_of_the_host_reaches_the_peer_in_its_words(
    start: Start, connect: Connect
) -> None:
    client = await connect(await start(), "/ws/client/client-1")
    await client.send("cancel_job", job_id="job-9", message_id="m-1")
    assert without_times(await client.next()) == {
        "type": "error",
        "code": "not_found",
        "error": "no such job",
        "message_id": "m-1",
    }


async def test_subscribing_later_begins_with_the_state_and_ends_on_demand(
    host: Host, start: Start, connect: Connect
) -> None:
    server = await start()
    submitter = await connect(server, "/ws/client/client-1")
    await submitter.send("submit_job", job_type="t")
    await submitter.until(type="job_accepted")
    for tenth in range(1, 4):
        host.progress("job-1", "worker-1", tenth / 10)

    late = await connect(server, "/ws/client/client-2")
    await late.send("subscribe_progress", job_id="job-1", message_id="m-1")
    host.progress("job-1", "worker-1", 0.4)
    await late.until(type="update_job_progress", progress=0.4)
    frames = late.timeless()[1:]
    assert frames[0] == {"type": "subscribed", "job_id": "job-1", "message_id": "m-1"}
    assert frames[1] == {"type": "job_accepted", "job_id": "job-1", "status": "queued"}
    assert [frame["progress"] for frame in frames[2:]] in ([0.3, 0.4], [0.4])

    await late.send("unsubscribe_progress", job_id="job-1", message_id="m-2")
    await late.until(type="unsubscribed", message_id="m-2")
    host.complete("job-1", "worker-1", None)
    await submitter.until(type="complete_job")
    assert (await everything_so_far(late))[-1]["type"] == "unsubscribed"


async def test_the_host_subscribes_a_client(host: Host, start: Start, connect: Connect) -> None:
    client = await connect(await start(), "/ws/client/client-1")
    host.broadcaster.subscribe_client_to_job("client-1", "job-7")
    host.progress("job-7", "worker-1", 0.1)
    assert (await client.next())["job_id"] == "job-7"
    host.broadcaster.unsubscribe_client_from_job("client-1", "job-7")
    host.progress("job-7", "worker-1", 0.2)
    assert len(await everything_so_far(client)) == 1


async def test_job_status(host: Host, start: Start, connect: Connect) -> None:
    client = await connect(await start(), "/ws/client/client-1")
    await client.send("submit_job", job_type="upscale")
    await client.until(type="job_accepted")
    host.progress("job-1", "worker-1", 0.5)
    await client.send("get_job_status", job_id="job-1", message_id="m-1")
    reply = await client.until(type="job_status")
    job = without_times(reply["job"])
    assert job == {
        "id": "job-1",
        "job_type": "upscale",
        "status": "in_progress",
        "progress": 0.5,
        "worker_id": "worker-1",
    }
    assert (reply["job_id"], reply["message_id"]) == ("job-1", "m-1")


async def test_a_monitor_narrows_by_query_and_by_command(
    host: Host, start: Start, connect: Connect
) -> None:
    server = await start()
    monitor = await connect(server, "/ws/monitor/monitor-1?topics=machines,jobs:progress")

    def broadcast_some() -> None:
        host.complete("job-1", "worker-1", None)
        host.progress("job-1", "worker-1", 0.5)
        host.broadcast(MachineUpdate(machine_id="machine-1"))
        host.broadcast(SystemStats(stats=SystemCounts()))

    broadcast_some()
    await monitor.until(type="machine_update")
    assert monitor.types() == ["connected", "update_job_progress", "machine_update"]

    topics = ["jobs:status", "system_stats"]
    await monitor.send("subscribe", topics=topics, filters={"worker_ids": ["worker-2"]})
    assert without_times(await monitor.next()) == {
        "type": "subscribed",
        "monitor_id": "monitor-1",
        "topics": topics,
    }
    host.complete("job-2", "worker-2", None)
    broadcast_some()
    await monitor.until(type="system_stats")
    assert monitor.types()[-2:] == ["complete_job", "system_stats"]
    assert monitor.frames[-2]["job_id"] == "job-2"


async def test_a_monitor_asks_for_what_was(host: Host, start: Start, connect: Connect) -> None:
    server = await start()
    host.broadcast(MachineUpdate(machine_id="machine-1", status_data={"cpu": 5}, timestamp=NOW))
    host.broadcast(JobAssigned(job_id="job-1", worker_id="worker-1", timestamp=NOW + 1))
    host.broadcast(SystemStats(stats=SystemCounts(total_jobs=1), timestamp=NOW + 2))
    host.broadcast(JobProgress(job_id="job-1", worker_id="w", progress=0.5, timestamp=NOW + 3))
    monitor = await connect(server, "/ws/monitor/monitor-1")

    await monitor.send("request_full_state")
    snapshot = await monitor.next()
    assert snapshot["type"] == "full_state_snapshot"
    data = snapshot["data"]
    assert set(data) == {"workers", "machines", "jobs", "system_stats"}
    assert data["machines"]["machine-1"]["status_data"] == {"cpu": 5}
    assert [job["id"] for job in data["jobs"]["active"]] == ["job-1"]
    assert set(data["jobs"]) == {"pending", "active", "completed", "failed"}
    assert data["system_stats"]["total_jobs"] == 1

    await monitor.send("resync_request", since_timestamp=NOW + 1, max_events=1)
    page = await monitor.next()
    assert page["type"] == "resync_response"
    assert page["monitor_id"] == "monitor-1"
    # At least what happened at that time, and something past it.
    assert [event["type"] for event in page["events"]] == ["job_assigned", "system_stats"]
    assert page["has_more"] is True
    assert page["oldest_available_timestamp"] == NOW


async def test_heartbeats_asked_and_unasked(start: Start, connect: Connect) -> None:
    broadcaster = EventBroadcaster(heartbeat_interval=0.05)
    server = await start(broadcaster=broadcaster, tick_interval=0.01)
    monitor = await connect(server, "/ws/monitor/monitor-1?topics=heartbeat")
    unasked = await monitor.until(type="heartbeat_ack")

    without = await connect(server, "/ws/monitor/monitor-2?topics=jobs")
    await without.send("heartbeat", monitor_id="monitor-2")
    asked = await without.next()
    assert without.types() == ["connected", "heartbeat_ack"]
    for ack, monitor_id in ((unasked, "monitor-1"), (asked, "monitor-2")):
        assert set(ack) == {"type", "timestamp", "monitor_id", "server_timestamp"}
        assert ack["monitor_id"] == monitor_id
        assert isinstance(ack["server_timestamp"], int)


@pytest.mark.parametrize(
    ("path", "sent", "code"),
    [
        ("/ws/client/c", "{", "bad_json"),
        ("/ws/client/c", '{"type":"nonsense"}', "unknown_type"),
        ("/ws/client/c", '{"type":"request_full_state"}', "unknown_type"),
        ("/ws/client/c", '{"type":"submit_job"}', "invalid_field"),
        ("/ws/client/c", '{"type":"get_job_status","job_id":"job-9"}', "not_found"),
        ("/ws/monitor/m", '{"type":"submit_job","job_type":"t"}', "unknown_type"),
        ("/ws/monitor/m", '{"type":"subscribe","topics":["nonsense"]}', "invalid_field"),
    ],
)
async def test_a_bad_command_is_answered_and_the_connection_stays(
    path: str, sent: str, code: str, start: Start, connect: Connect
) -> None:
    connected = await connect(await start(), path)
    for _ in range(2):
        await connected.websocket.send(sent)
        answer = await connected.next()
        assert (answer["type"], answer["code"]) == ("error", code)
        assert set(answer) == {"type", "timestamp", "error", "code"}


async def test_without_hooks_submit_and_cancel_are_unsupported(
    start: Start, connect: Connect
) -> None:
    client = await connect(await start(submit=None, cancel=None), "/ws/client/client-1")
    await client.send("submit_job", job_type="t")
    await client.send("cancel_job", job_id="job-1")
    assert [(await client.next())["code"] for _ in range(2)] == ["unsupported"] * 2


async def test_closing_sends_what_was_broadcast_and_says_so(
    host: Host, start: Start, connect: Connect
) -> None:
    server = await start()
    monitor = await connect(server, "/ws/monitor/monitor-1")
    client = await connect(server, "/ws/client/client-1?jobs=job-1")
    host.complete("job-1", "worker-1", "last words")
    await server.close()
    for each in (monitor, client):
        assert await each.closed() == CloseCode.GOING_AWAY
        assert each.types()[-1] == "complete_job"


async def test_a_newer_connection_with_the_same_id_replaces_the_older(
    host: Host, start: Start, connect: Connect
) -> None:
    server = await start()
    older = await connect(server, "/ws/monitor/monitor-1")
    newer = await connect(server, "/ws/monitor/monitor-1")
    assert await older.closed() == CloseCode.REPLACED
    host.progress("job-1", "worker-1", 0.5)
    assert (await newer.next())["type"] == "update_job_progress"


# --- who is let in -----------------------------------------------------------------------------


TOKENS = StaticTokens(
    {
        "t-alice": "alice",
        "t-bob": "bob",
        "t-watch": Principal(id="watcher", roles=frozenset({"monitor"})),
    }
)


async def refusal(server: BroadcastServer, path: str, **arguments: Any) -> tuple[int, Any, str]:
    """Return status, headers and text of the answer to a handshake."""
    with pytest.raises(InvalidStatus) as caught:
        async with peer(server.port, path, **arguments):
            pass
    response = caught.value.response
    text = response.body.decode()
    assert response.headers["Content-Type"].startswith("text/plain")
    assert 0 < len(text) < 200
    return response.status_code, response.headers, text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ws/monitor/", 400),
        ("/ws/monitor/a%20b", 400),
        ("/ws/monitor/%ff", 400),
        ("/ws/client/" + "a" * 129, 400),
        ("/ws/monitor/m?topics=nonsense", 400),
        ("/ws/monitor/m?topics=", 400),
        ("/ws/monitor/m?resume=nonsense", 400),
        ("/ws/monitor/m?topics=jobs&topics=jobs", 400),
        ("/ws/monitor/m?jobs=job-1", 400),
        ("/ws/client/c?topics=jobs", 400),
        ("/ws/client/c?jobs=", 400),
        ("/", 404),
        ("/ws", 404),
        ("/ws/monitor", 404),
        ("/ws/worker/w", 404),
        ("/ws/monitor/m/", 404),
        ("/WS/MONITOR/m", 404),
    ],
)
async def test_bad_requests_are_refused_before_the_upgrade(
    path: str, status: int, start: Start
) -> None:
    assert (await refusal(await start(), path))[0] == status


async def test_an_id_may_be_percent_encoded(start: Start, connect: Connect) -> None:
    monitor = await connect(await start(), "/ws/monitor/monitor%2D1~a.b_c:d")
    await monitor.send("heartbeat")
    assert (await monitor.next())["monitor_id"] == "monitor-1~a.b_c:d"


async def test_a_token_by_header_or_by_query_is_let_in(start: Start, connect: Connect) -> None:
    server = await start(authenticate=TOKENS)
    for path, token in (
        ("/ws/monitor/m", "t-alice"),
        ("/ws/client/c", "t-alice"),
        ("/ws/monitor/m?token=t-alice", None),
        ("/ws/client/c?token=t-alice", None),
        ("/ws/monitor/m?token=wrong", "t-alice"),  # the header wins
    ):
        connected = await connect(server, path, token=token)
        assert connected.types()[0] in ("connected", "connection_established")


@pytest.mark.parametrize(
    ("path", "token"),
    [
        ("/ws/monitor/m", None),
        ("/ws/client/c", None),
        ("/ws/monitor/m", "t-mallory"),
        ("/ws/monitor/m?token=", None),
        ("/ws/monitor/m?token=t-mallory", None),
        ("/ws/monitor/m?token=t-alice", "wrong"),  # the header wins
        ("/ws/monitor/m?token=%C3%A9", None),
    ],
)
async def test_no_or_a_wrong_credential_is_401(path: str, token: str | None, start: Start) -> None:
    server = await start(authenticate=TOKENS)
    status, headers, text = await refusal(server, path, token=token)
    assert status == 401
    assert headers["WWW-Authenticate"] == "Bearer"
    assert "t-" not in text


async def test_a_right_credential_in_the_wrong_place_is_403(start: Start, connect: Connect) -> None:
    server = await start(authenticate=TOKENS)
    await connect(server, "/ws/client/c", token="t-alice")
    await connect(server, "/ws/monitor/m", token="t-alice")
    # The role, the owner of the id, the page a browser is at.
    assert (await refusal(server, "/ws/client/w", token="t-watch"))[0] == 403
    assert (await refusal(server, "/ws/client/c", token="t-bob"))[0] == 403
    assert (await refusal(server, "/ws/monitor/m", token="t-bob"))[0] == 403
    elsewhere = "https://elsewhere.example"
    assert (await refusal(server, "/ws/monitor/m", token="t-alice", origin=elsewhere))[0] == 403
    here = f"http://localhost:{server.port}"
    await connect(server, "/ws/monitor/m", token="t-alice", origin=here)


async def test_anonymous_servers_answer_to_local_names_alone(start: Start) -> None:
    server = await start()
    rebound = "ws://attacker.example/ws/monitor/m"
    with pytest.raises(InvalidStatus) as caught:
        async with websockets_connect(rebound, host="127.0.0.1", port=server.port, proxy=None):
            pass
    assert caught.value.response.status_code == 403


async def test_too_many_connections_are_503(start: Start, connect: Connect) -> None:
    server = await start(connection_limits=ConnectionLimits(total=2))
    await connect(server, "/ws/monitor/m")
    await connect(server, "/ws/client/c")
    status, headers, _ = await refusal(server, "/ws/client/d")
    assert status == 503
    assert int(headers["Retry-After"]) > 0


async def test_what_the_hosts_authenticate_decides(start: Start) -> None:
    async def authenticate(handshake: Handshake) -> Principal | Refusal | None:
        await asyncio.sleep(0)
        if handshake.credential == "teapot":
            return Refusal(status=418, text="short and stout\n")
        raise RuntimeError("the user database is down")

    server = await start(authenticate=authenticate)
    assert (await refusal(server, "/ws/monitor/m", token="teapot"))[::2] == (
        418,
        "short and stout\n",
    )
    assert (await refusal(server, "/ws/monitor/m", token="other"))[0] == 503


async def test_someone_elses_job_looks_like_no_job(
    host: Host, start: Start, connect: Connect
) -> None:
    server = await start(authenticate=TOKENS)
    alice = await connect(server, "/ws/client/alice", token="t-alice")
    await alice.send("submit_job", job_type="t")
    await alice.until(type="job_accepted")
    bob = await connect(server, "/ws/client/bob?jobs=job-1", token="t-bob")
    assert (await bob.next())["code"] == "not_found"
    for command in ("subscribe_progress", "get_job_status", "cancel_job"):
        answers = []
        for job_id in ("job-1", "no-such-job"):
            await bob.send(command, job_id=job_id)
            answers.append(json.dumps(without_times(await bob.next())))
        assert answers[0] == answers[1]
    host.complete("job-1", "worker-1", "private")
    await alice.until(type="complete_job")
    assert "complete_job" not in {frame["type"] for frame in await everything_so_far(bob)}
    assert host.cancelled == []
