"""Every frame the specifications show, built through the public API: same keys, values and types.

First the examples of the founding specification, word for word (`{...}` filled in); then the rows
of the wire protocol: section 3 (monitors), 4 (clients) and 5 (the conversation).
"""

import json
from typing import Any

import pytest

from jobqueue_broadcast import (
    ConnectorStatusChanged,
    Event,
    EventBroadcaster,
    HostInfo,
    JobAssigned,
    JobCompleted,
    JobData,
    JobFailed,
    JobProgress,
    JobStatusChanged,
    JobSubmitted,
    MachineDisconnected,
    MachineShutdown,
    MachineStartup,
    MachineStartupComplete,
    MachineStartupStep,
    MachineStatusChange,
    MachineUpdate,
    SystemCounts,
    SystemStats,
    WorkerConnected,
    WorkerData,
    WorkerDisconnected,
    WorkerStatusChanged,
)
from jobqueue_broadcast.session import Hooks, Session, SessionLimits
from jobqueue_broadcast.testing import ManualClock, RecordingConnection
from tests.strict_json import parse

AT = 1642700000000


def typed(value: Any) -> Any:
    """The value with the type of everything in it, since 1 == 1.0 == True."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return type(value).__name__, value


def check(payload: bytes, golden: str) -> None:
    assert typed(parse(payload)) == typed(json.loads(golden))


class Server:
    """A broadcaster with one monitor and one client that holds `job-123`."""

    def __init__(self) -> None:
        self.broadcaster = EventBroadcaster(clock=ManualClock(AT))
        self.monitor = RecordingConnection()
        self.client = RecordingConnection()
        monitor = self.broadcaster.add_monitor("monitor-123", self.monitor)
        client = self.broadcaster.add_client("client-456", self.client)
        self.greetings = [*self.monitor.payloads, *self.client.payloads]
        self.broadcaster.subscribe_client_to_job("client-456", "job-123")
        self.forget()
        hooks = Hooks(submit=lambda command, _: "job-123", cancel=lambda job_id, _: None)
        self.monitor_session = Session(self.broadcaster, monitor, hooks, SessionLimits())
        self.client_session = Session(self.broadcaster, client, hooks, SessionLimits())

    def forget(self) -> None:
        self.monitor.payloads.clear()
        self.client.payloads.clear()

    def frames(self, event: Event) -> tuple[bytes, list[bytes]]:
        """The monitor's frame of an event, and the client's frames."""
        self.forget()
        self.broadcaster.broadcast(event)
        [original] = self.monitor.payloads
        return original, self.client.payloads

    def monitor_says(self, text: str) -> list[bytes]:
        self.forget()
        assert self.monitor_session.receive(text) is None
        return self.monitor.payloads

    def client_says(self, text: str) -> list[bytes]:
        self.forget()
        ask = self.client_session.receive(text)
        while ask is not None:
            ask = ask.answered(ask.call())
        return self.client.payloads


@pytest.fixture
def server() -> Server:
    return Server()


# --- the founding specification ------------------------------------------------------------------


def test_specification_connected(server: Server) -> None:
    check(server.greetings[0], '{"type": "connected", "timestamp": 1642700000000}')


def test_specification_connection_established(server: Server) -> None:
    check(
        server.greetings[1],
        """{
          "type": "connection_established",
          "message": "Connected to server",
          "timestamp": 1642700000000
        }""",
    )


def test_specification_job_submitted(server: Server) -> None:
    data = JobData(
        id="job-123",
        job_type="comfyui",
        priority=5,
        requirements={"gpu_memory_gb": 8},
        created_at=AT,
    )
    original, [emprops] = server.frames(JobSubmitted(job_id="job-123", job_data=data))
    check(
        original,
        """{
          "type": "job_submitted",
          "job_id": "job-123",
          "job_data": {
            "id": "job-123",
            "job_type": "comfyui",
            "status": "pending",
            "priority": 5,
            "requirements": {"gpu_memory_gb": 8},
            "created_at": 1642700000000
          },
          "timestamp": 1642700000000
        }""",
    )
    check(
        emprops,
        """{
          "type": "job_accepted",
          "job_id": "job-123",
          "status": "queued",
          "timestamp": 1642700000000
        }""",
    )


def test_specification_job_progress(server: Server) -> None:
    event = JobProgress(job_id="job-123", worker_id="worker-1", progress=0.5)
    original, [emprops] = server.frames(event)
    check(
        original,
        """{
          "type": "update_job_progress",
          "job_id": "job-123",
          "worker_id": "worker-1",
          "progress": 0.5,
          "timestamp": 1642700000000
        }""",
    )
    check(
        emprops,
        """{
          "type": "update_job_progress",
          "job_id": "job-123",
          "progress": 0.5,
          "timestamp": 1642700000000
        }""",
    )


def test_specification_job_completion(server: Server) -> None:
    event = JobCompleted(job_id="job-123", worker_id="worker-1", result={"images": ["a.png"]})
    original, [emprops] = server.frames(event)
    check(
        original,
        """{
          "type": "complete_job",
          "job_id": "job-123",
          "worker_id": "worker-1",
          "result": {"images": ["a.png"]},
          "completed_at": 1642700000000,
          "timestamp": 1642700000000
        }""",
    )
    check(
        emprops,
        """{
          "type": "complete_job",
          "job_id": "job-123",
          "worker_id": "worker-1",
          "result": {
            "status": "success",
            "data": {"images": ["a.png"]}
          },
          "timestamp": 1642700000000
        }""",
    )


def test_specification_job_failure(server: Server) -> None:
    event = JobFailed(job_id="job-123", worker_id="worker-1", error="Error message")
    _, [emprops] = server.frames(event)
    check(
        emprops,
        """{
          "type": "complete_job",
          "job_id": "job-123",
          "worker_id": "worker-1",
          "result": {
            "status": "failed",
            "error": "Error message"
          },
          "timestamp": 1642700000000
        }""",
    )


# --- wire protocol, sections 3 and 4 -------------------------------------------------------------

JOB_DATA: dict[str, Any] = {
    "id": "job-123",
    "job_type": "comfyui",
    "priority": 5,
    "requirements": {"any": [1]},
    "payload": {"any": None},
    "workflow_id": "w",
    "workflow_priority": 1,
    "workflow_datetime": 2,
    "current_step": 3,
    "total_steps": 4,
    "customer_id": "c",
    "created_at": 1,
}
CAPABILITIES = {
    "gpu_count": 1,
    "gpu_memory_gb": 24,
    "gpu_model": "RTX 4090",
    "cpu_cores": 16,
    "ram_gb": 64,
    "services": ["comfyui"],
    "models": {},
    "customer_access": "none",
    "max_concurrent_jobs": 1,
    "of_the_host": True,
}
COUNTS = {
    "total_workers": 1,
    "active_workers": 2,
    "total_jobs": 3,
    "pending_jobs": 4,
    "active_jobs": 5,
    "completed_jobs": 6,
    "failed_jobs": 7,
}
HOST: dict[str, Any] = {
    "hostname": "h",
    "os": "linux",
    "cpu_cores": 8,
    "total_ram_gb": 32.0,
    "gpu_count": 2,
}
JOB: dict[str, Any] = {"job_id": "job-123"}
WORKER: dict[str, Any] = {"worker_id": "worker-1"}
MACHINE: dict[str, Any] = {"machine_id": "machine-1"}
MOVED: dict[str, Any] = {"old_status": "queued", "new_status": "in_progress"}

# The event with all its optional fields, its frame for monitors, and its frame for clients; then
# the event with none of them.
ROWS: list[tuple[Event, dict[str, Any], dict[str, Any] | None]] = [
    (
        JobSubmitted(job_id="job-123", job_data=JobData(**JOB_DATA)),
        {"type": "job_submitted", **JOB, "job_data": JOB_DATA | {"status": "pending"}},
        {"type": "job_accepted", **JOB, "status": "queued"},
    ),
    (
        JobSubmitted(job_id="job-123", job_data=JobData(id="job-123", job_type="a", created_at=1)),
        {
            "type": "job_submitted",
            **JOB,
            "job_data": {
                "id": "job-123",
                "job_type": "a",
                "status": "pending",
                "priority": 0,
                "created_at": 1,
            },
        },
        {"type": "job_accepted", **JOB, "status": "queued"},
    ),
    (
        JobAssigned(**JOB, **WORKER),
        {
            "type": "job_assigned",
            **JOB,
            **WORKER,
            "old_status": "pending",
            "new_status": "assigned",
            "assigned_at": AT,
        },
        {"type": "job_assigned", **JOB, **WORKER},
    ),
    (
        JobStatusChanged(**JOB, **WORKER, **MOVED),
        {"type": "job_status_changed", **JOB, **WORKER, **MOVED},
        {"type": "job_status_changed", **JOB, "status": "in_progress"},
    ),
    (
        JobStatusChanged(**JOB, **MOVED),
        {"type": "job_status_changed", **JOB, **MOVED},
        {"type": "job_status_changed", **JOB, "status": "in_progress"},
    ),
    (
        JobProgress(**JOB, **WORKER, progress=1.0, status="sampling", message="20 of 20"),
        {
            "type": "update_job_progress",
            **JOB,
            **WORKER,
            "progress": 1.0,
            "status": "sampling",
            "message": "20 of 20",
        },
        {"type": "update_job_progress", **JOB, "progress": 1.0},
    ),
    (
        JobProgress(**JOB, **WORKER, progress=0.0),
        {"type": "update_job_progress", **JOB, **WORKER, "progress": 0.0},
        {"type": "update_job_progress", **JOB, "progress": 0.0},
    ),
    (
        JobCompleted(**JOB, **WORKER, result=[1, None]),
        {"type": "complete_job", **JOB, **WORKER, "result": [1, None], "completed_at": AT},
        {
            "type": "complete_job",
            **JOB,
            **WORKER,
            "result": {"status": "success", "data": [1, None]},
        },
    ),
    (
        JobCompleted(**JOB, **WORKER),
        {"type": "complete_job", **JOB, **WORKER, "completed_at": AT},
        {"type": "complete_job", **JOB, **WORKER, "result": {"status": "success", "data": None}},
    ),
    (
        JobFailed(**JOB, **WORKER, error="e"),
        {"type": "job_failed", **JOB, **WORKER, "error": "e", "failed_at": AT},
        {"type": "complete_job", **JOB, **WORKER, "result": {"status": "failed", "error": "e"}},
    ),
    (
        JobFailed(**JOB, error="e"),
        {"type": "job_failed", **JOB, "error": "e", "failed_at": AT},
        {"type": "complete_job", **JOB, "result": {"status": "failed", "error": "e"}},
    ),
    (
        WorkerConnected(
            **WORKER,
            **MACHINE,
            worker_data=WorkerData(
                id="worker-1", status="idle", capabilities=CAPABILITIES, connected_at=1
            ),
        ),
        {
            "type": "worker_connected",
            **WORKER,
            **MACHINE,
            "worker_data": {
                "id": "worker-1",
                "status": "idle",
                "capabilities": CAPABILITIES,
                "connected_at": 1,
                "jobs_completed": 0,
                "jobs_failed": 0,
            },
        },
        None,
    ),
    (
        WorkerDisconnected(**WORKER, **MACHINE),
        {"type": "worker_disconnected", **WORKER, **MACHINE},
        None,
    ),
    (
        WorkerStatusChanged(**WORKER, old_status="idle", new_status="busy", current_job_id="j"),
        {
            "type": "worker_status_changed",
            **WORKER,
            "old_status": "idle",
            "new_status": "busy",
            "current_job_id": "j",
        },
        None,
    ),
    (
        WorkerStatusChanged(**WORKER, old_status="busy", new_status="idle"),
        {"type": "worker_status_changed", **WORKER, "old_status": "busy", "new_status": "idle"},
        None,
    ),
    (
        ConnectorStatusChanged(
            **WORKER, connector_id="c", service_type="s", status="error", service_info={"a": 1}
        ),
        {
            "type": "connector_status_changed",
            **WORKER,
            "connector_id": "c",
            "service_type": "s",
            "status": "error",
            "service_info": {"a": 1},
        },
        None,
    ),
    (
        ConnectorStatusChanged(**WORKER, connector_id="c", service_type="s", status="active"),
        {
            "type": "connector_status_changed",
            **WORKER,
            "connector_id": "c",
            "service_type": "s",
            "status": "active",
        },
        None,
    ),
    (
        MachineStartup(
            **MACHINE,
            phase="starting",
            host_info=HostInfo(**HOST, ip_address="192.0.2.1", gpu_models=["a"]),
        ),
        {
            "type": "machine_startup",
            **MACHINE,
            "phase": "starting",
            "host_info": HOST | {"ip_address": "192.0.2.1", "gpu_models": ["a"]},
        },
        None,
    ),
    (
        MachineStartup(**MACHINE, phase="ready", host_info=HostInfo(**HOST)),
        {"type": "machine_startup", **MACHINE, "phase": "ready", "host_info": HOST},
        None,
    ),
    (
        MachineStartup(**MACHINE, phase="configuring"),
        {"type": "machine_startup", **MACHINE, "phase": "configuring"},
        None,
    ),
    (
        MachineStartupStep(
            **MACHINE, step_name="s", step_phase="shared_setup", step_data={"a": 1}, elapsed_ms=5
        ),
        {
            "type": "machine_startup_step",
            **MACHINE,
            "step_name": "s",
            "step_phase": "shared_setup",
            "step_data": {"a": 1},
            "elapsed_ms": 5,
        },
        None,
    ),
    (
        MachineStartupStep(**MACHINE, step_name="s", step_phase="ai_services", elapsed_ms=5),
        {
            "type": "machine_startup_step",
            **MACHINE,
            "step_name": "s",
            "step_phase": "ai_services",
            "elapsed_ms": 5,
        },
        None,
    ),
    (
        MachineStartupComplete(
            **MACHINE, total_startup_time_ms=5, worker_count=2, services_started=["redis"]
        ),
        {
            "type": "machine_startup_complete",
            **MACHINE,
            "total_startup_time_ms": 5,
            "worker_count": 2,
            "services_started": ["redis"],
        },
        None,
    ),
    (
        MachineShutdown(**MACHINE, reason="r"),
        {"type": "machine_shutdown", **MACHINE, "reason": "r"},
        None,
    ),
    (MachineShutdown(**MACHINE), {"type": "machine_shutdown", **MACHINE}, None),
    (
        MachineDisconnected(**MACHINE, reason="r"),
        {"type": "machine_disconnected", **MACHINE, "reason": "r"},
        None,
    ),
    (MachineDisconnected(**MACHINE), {"type": "machine_disconnected", **MACHINE}, None),
    (
        MachineUpdate(**MACHINE, structure={"a": 1}, status_data={"b": None}),
        {"type": "machine_update", **MACHINE, "structure": {"a": 1}, "status_data": {"b": None}},
        None,
    ),
    (
        MachineStatusChange(**MACHINE),
        {"type": "machine_status_change", **MACHINE, "structure": {}, "status_data": {}},
        None,
    ),
    (
        SystemStats(stats=SystemCounts(**COUNTS)),
        {"type": "system_stats", "stats": COUNTS},
        None,
    ),
]


@pytest.mark.parametrize(("event", "original", "emprops"), ROWS, ids=lambda row: type(row).__name__)
def test_protocol_sections_3_and_4(
    server: Server, event: Event, original: dict[str, Any], emprops: dict[str, Any] | None
) -> None:
    for_monitors, for_clients = server.frames(event)
    check(for_monitors, json.dumps(original | {"timestamp": AT}))
    assert len(for_clients) == (emprops is not None)
    for payload in for_clients:
        check(payload, json.dumps((emprops or {}) | {"timestamp": AT}))


def test_every_event_type_has_a_row() -> None:
    assert len({type(event) for event, _, _ in ROWS}) == 18


# --- wire protocol, section 5 --------------------------------------------------------------------


def reply(**fields: Any) -> str:
    return json.dumps(fields | {"timestamp": AT})


@pytest.mark.parametrize(
    ("says", "answer"),
    [
        (
            '{"type": "subscribe", "topics": ["machines", "jobs"], "filters": {}}',
            reply(type="subscribed", monitor_id="monitor-123", topics=["jobs", "machines"]),
        ),
        (
            '{"type": "request_full_state"}',
            reply(
                type="full_state_snapshot",
                data={
                    "workers": {},
                    "machines": {},
                    "jobs": {"pending": [], "active": [], "completed": [], "failed": []},
                    "system_stats": dict.fromkeys(COUNTS, 0),
                },
            ),
        ),
        (
            '{"type": "resync_request", "since_timestamp": 0, "max_events": 5}',
            reply(
                type="resync_response",
                monitor_id="monitor-123",
                events=[],
                has_more=False,
                oldest_available_timestamp=AT,
            ),
        ),
        (
            '{"type": "heartbeat", "monitor_id": "monitor-123"}',
            reply(type="heartbeat_ack", monitor_id="monitor-123", server_timestamp=AT),
        ),
    ],
    ids=lambda text: json.loads(text)["type"],
)
def test_protocol_section_5_monitor(server: Server, says: str, answer: str) -> None:
    [payload] = server.monitor_says(says)
    check(payload, answer)


def test_protocol_section_5_a_page_holds_the_frames_themselves(server: Server) -> None:
    original, _ = server.frames(MachineShutdown(**MACHINE))
    [payload] = server.monitor_says('{"type": "resync_request", "since_timestamp": 0}')
    assert parse(payload)["events"] == [parse(original)]


@pytest.mark.parametrize(
    ("says", "answers"),
    [
        (
            '{"type": "submit_job", "message_id": "m", "job_type": "comfyui", "priority": 1}',
            [reply(type="job_accepted", job_id="job-123", status="queued")],
        ),
        (
            '{"type": "subscribe_progress", "job_id": "job-9", "message_id": "m"}',
            [reply(type="subscribed", job_id="job-9", message_id="m")],
        ),
        (
            '{"type": "subscribe_progress", "job_id": "job-9"}',
            [reply(type="subscribed", job_id="job-9")],
        ),
        (
            '{"type": "unsubscribe_progress", "job_id": "job-123", "message_id": "m"}',
            [reply(type="unsubscribed", job_id="job-123", message_id="m")],
        ),
        (
            '{"type": "cancel_job", "job_id": "job-123", "message_id": "m"}',
            [reply(type="job_cancelled", job_id="job-123", message_id="m")],
        ),
        (
            '{"type": "cancel_job", "job_id": "job-123"}',
            [reply(type="job_cancelled", job_id="job-123")],
        ),
    ],
)
def test_protocol_section_5_client(server: Server, says: str, answers: list[str]) -> None:
    payloads = server.client_says(says)
    assert len(payloads) == len(answers)
    for payload, answer in zip(payloads, answers, strict=True):
        check(payload, answer)


@pytest.mark.parametrize(
    ("events", "job"),
    [
        (
            [JobStatusChanged(**JOB, old_status="pending", new_status="queued")],
            {"id": "job-123", "status": "queued"},
        ),
        (
            [
                JobSubmitted(
                    **JOB, job_data=JobData(id="job-123", job_type="comfyui", created_at=1)
                ),
                JobProgress(**JOB, **WORKER, progress=0.5),
            ],
            {
                "id": "job-123",
                "job_type": "comfyui",
                "status": "in_progress",
                "progress": 0.5,
                "worker_id": "worker-1",
                "created_at": 1,
            },
        ),
        (
            [JobCompleted(**JOB, **WORKER, result={"a": 1})],
            {
                "id": "job-123",
                "status": "completed",
                "worker_id": "worker-1",
                "result": {"a": 1},
                "completed_at": AT,
            },
        ),
        (
            [JobFailed(**JOB, error="e")],
            {"id": "job-123", "status": "failed", "error": "e", "completed_at": AT},
        ),
    ],
)
def test_protocol_section_5_job_status(
    server: Server, events: list[Event], job: dict[str, Any]
) -> None:
    for event in events:
        server.broadcaster.broadcast(event)
    says = {"type": "get_job_status", "job_id": "job-123", "message_id": "m"}
    [payload] = server.client_says(json.dumps(says))
    check(payload, reply(type="job_status", job_id="job-123", message_id="m", job=job))


@pytest.mark.parametrize(
    ("says", "code", "error"),
    [
        ("nope", "bad_json", "expected one JSON object in UTF-8"),
        (
            '{"type": "heartbeat", "message_id": "m"}',
            "unknown_type",
            (
                "type: expected one of submit_job, subscribe_progress, unsubscribe_progress, "
                "get_job_status, cancel_job"
            ),
        ),
        (
            '{"type": "cancel_job", "job_id": "", "message_id": "m"}',
            "invalid_field",
            "job_id: Expected `str` of length >= 1",
        ),
        (
            '{"type": "get_job_status", "job_id": "job-9", "message_id": "m"}',
            "not_found",
            "no such job, or it is not yours",
        ),
    ],
)
def test_protocol_section_5_errors(server: Server, says: str, code: str, error: str) -> None:
    [payload] = server.client_says(says)
    echoed = {"message_id": "m"} if '"m"' in says else {}
    check(payload, reply(type="error", error=error, code=code, **echoed))


@pytest.mark.parametrize("of_type", ["submit_job", "cancel_job"])
def test_protocol_section_5_unsupported(of_type: str) -> None:
    broadcaster = EventBroadcaster(clock=ManualClock(AT))
    connection = RecordingConnection()
    client = broadcaster.add_client("client-456", connection)
    connection.take()
    session = Session(broadcaster, client, Hooks(), SessionLimits())
    session.receive(json.dumps({"type": of_type, "job_type": "a", "job_id": "j"}))
    [frame] = connection.take()
    assert set(frame) == {"type", "timestamp", "error", "code"}
    assert (frame["type"], frame["code"]) == ("error", "unsupported")


def test_a_position_is_an_extra_last_field_and_only_there() -> None:
    broadcaster = EventBroadcaster(clock=ManualClock(AT))
    opted_in, other = RecordingConnection(), RecordingConnection()
    broadcaster.add_monitor("m-1", opted_in, resume="new")
    broadcaster.add_monitor("m-2", other)
    broadcaster.broadcast(MachineShutdown(**MACHINE))
    for with_position, without in zip(opted_in.frames, other.frames, strict=True):
        assert list(with_position)[-1] == "position"
        assert isinstance(with_position.pop("position"), str)
        assert with_position == without
