from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue_broadcast.commands import FullStateSnapshot
from jobqueue_broadcast.events import (
    ConnectorStatusChanged,
    Event,
    HostInfo,
    JobAssigned,
    JobCompleted,
    JobData,
    JobEvent,
    JobFailed,
    JobProgress,
    JobStatus,
    JobStatusChanged,
    JobSubmitted,
    MachineDisconnected,
    MachineEvent,
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
    WorkerEvent,
    WorkerStatusChanged,
    encode,
)
from jobqueue_broadcast.full_state import FullState
from jobqueue_broadcast.job_states import JobState
from tests import strategies as some
from tests.strict_json import parse


class WorkerHiccup(WorkerEvent, frozen=True, kw_only=True, tag="full_state_test_hiccup"):
    """Of a host."""


class MachineHiccup(MachineEvent, frozen=True, kw_only=True, tag="full_state_test_machine_hiccup"):
    """Of a host."""


def connected(worker_id: str = "w-1", status: str = "idle") -> WorkerConnected:
    return WorkerConnected(
        worker_id=worker_id,
        machine_id="m-1",
        worker_data=WorkerData(
            id=worker_id, status=status, capabilities={"gpu_count": 1}, connected_at=5
        ),
    )


CONNECTED = {
    "id": "w-1",
    "status": "idle",
    "capabilities": {"gpu_count": 1},
    "connected_at": 5,
    "jobs_completed": 0,
    "jobs_failed": 0,
    "machine_id": "m-1",
}


def after(*events: Event, limit: int = 10) -> dict[str, Any]:
    state = FullState(limit)
    for event in events:
        state.take(event)
    return state.snapshot([])


def test_nothing_is_known_at_first() -> None:
    assert after() == {
        "workers": {},
        "machines": {},
        "jobs": {"pending": [], "active": [], "completed": [], "failed": []},
        "system_stats": {
            "total_workers": 0,
            "active_workers": 0,
            "total_jobs": 0,
            "pending_jobs": 0,
            "active_jobs": 0,
            "completed_jobs": 0,
            "failed_jobs": 0,
        },
    }


# --- workers -------------------------------------------------------------------------------------


def changed(new_status: str, **more: Any) -> WorkerStatusChanged:
    return WorkerStatusChanged(worker_id="w-1", old_status="idle", new_status=new_status, **more)


def connector(connector_id: str, status: Any) -> ConnectorStatusChanged:
    return ConnectorStatusChanged(
        worker_id="w-1", connector_id=connector_id, service_type="comfyui", status=status
    )


@pytest.mark.parametrize(
    ("events", "worker"),
    [
        ([connected()], CONNECTED),
        (
            [connected(), changed("busy", current_job_id="job-1")],
            CONNECTED | {"status": "busy", "current_job_id": "job-1"},
        ),
        (
            [connected(), changed("busy", current_job_id="job-1"), changed("idle")],
            CONNECTED,
        ),
        (
            [connected(), changed("busy", current_job_id="job-1"), connected()],
            CONNECTED,
        ),
        ([changed("busy")], {"id": "w-1", "status": "busy"}),
        (
            [connected(), connector("c-1", "active"), connector("c-2", "error")],
            CONNECTED
            | {
                "connectors": {
                    "c-1": {"service_type": "comfyui", "status": "active"},
                    "c-2": {"service_type": "comfyui", "status": "error"},
                }
            },
        ),
        (
            [connector("c-1", "active"), connector("c-1", "inactive")],
            {
                "id": "w-1",
                "connectors": {"c-1": {"service_type": "comfyui", "status": "inactive"}},
            },
        ),
        ([WorkerHiccup(worker_id="w-1")], {"id": "w-1"}),
    ],
)
def test_a_worker(events: list[Event], worker: dict[str, Any]) -> None:
    assert after(*events)["workers"] == {"w-1": worker}


def test_a_worker_that_leaves_is_gone() -> None:
    gone = WorkerDisconnected(worker_id="w-1", machine_id="m-1")
    assert after(connected(), gone)["workers"] == {}
    assert after(gone)["workers"] == {}


# --- machines ------------------------------------------------------------------------------------

HOST = HostInfo(hostname="h", os="linux", cpu_cores=8, total_ram_gb=32.0, gpu_count=0)
HOST_JSON = {"hostname": "h", "os": "linux", "cpu_cores": 8, "total_ram_gb": 32.0, "gpu_count": 0}


@pytest.mark.parametrize(
    ("events", "machine"),
    [
        ([MachineStartup(machine_id="m-1", phase="starting")], {"phase": "starting"}),
        (
            [
                MachineStartup(machine_id="m-1", phase="starting", host_info=HOST),
                MachineStartup(machine_id="m-1", phase="configuring"),
            ],
            {"phase": "configuring", "host_info": HOST_JSON},
        ),
        (
            [
                MachineStartupStep(
                    machine_id="m-1", step_name="s", step_phase="ai_services", elapsed_ms=1
                )
            ],
            {},
        ),
        (
            [
                MachineStartupComplete(
                    machine_id="m-1",
                    total_startup_time_ms=1,
                    worker_count=1,
                    services_started=["redis"],
                )
            ],
            {"phase": "ready", "services_started": ["redis"]},
        ),
        ([MachineShutdown(machine_id="m-1")], {"phase": "shutdown"}),
        (
            [
                MachineUpdate(machine_id="m-1", structure={"a": 1}, status_data={"b": 1}),
                MachineStatusChange(machine_id="m-1", structure={"a": 2}, status_data={"c": 2}),
            ],
            {"structure": {"a": 2}, "status_data": {"c": 2}},
        ),
        ([MachineHiccup(machine_id="m-1")], {}),
    ],
)
def test_a_machine(events: list[Event], machine: dict[str, Any]) -> None:
    assert after(*events)["machines"] == {"m-1": {"id": "m-1"} | machine}


def test_a_machine_that_is_lost_is_gone() -> None:
    lost = MachineDisconnected(machine_id="m-1")
    assert after(MachineShutdown(machine_id="m-1"), lost)["machines"] == {}
    assert after(lost)["machines"] == {}


# --- bounds --------------------------------------------------------------------------------------


def test_the_one_heard_of_least_recently_goes_first() -> None:
    state = FullState(2)
    for worker_id in ("w-1", "w-2", "w-1", "w-3"):
        state.take(connected(worker_id))
    assert list(state.snapshot([])["workers"]) == ["w-1", "w-3"]
    assert (state.worker_count, state.machine_count, state.evicted) == (2, 0, 1)
    for machine_id in ("m-1", "m-2", "m-3"):
        state.take(MachineShutdown(machine_id=machine_id))
    assert list(state.snapshot([])["machines"]) == ["m-2", "m-3"]
    assert (state.worker_count, state.machine_count, state.evicted) == (2, 2, 2)


def test_a_limit_of_nothing_keeps_nothing() -> None:
    assert after(connected(), MachineShutdown(machine_id="m-1"), limit=0) == after()


@given(st.lists(some.events(), max_size=12), st.integers(0, 3))
def test_the_bounds_hold_and_the_snapshot_is_a_frame(events: list[Event], limit: int) -> None:
    state = FullState(limit)
    for event in events:
        state.take(event)
    assert state.worker_count <= limit
    assert state.machine_count <= limit
    snapshot = state.snapshot([])
    assert len(snapshot["workers"]) == state.worker_count
    assert parse(encode(FullStateSnapshot(timestamp=1, data=snapshot)))["data"] == snapshot


# --- figures -------------------------------------------------------------------------------------


def test_the_hosts_figures_come_first() -> None:
    stats = SystemStats(stats=SystemCounts(total_workers=7, completed_jobs=9))
    assert after(connected(), stats)["system_stats"] == {
        "total_workers": 7,
        "active_workers": 0,
        "total_jobs": 0,
        "pending_jobs": 0,
        "active_jobs": 0,
        "completed_jobs": 9,
        "failed_jobs": 0,
    }


def test_without_them_what_is_known_here_is_counted() -> None:
    state = FullState(10)
    for worker_id, status in [("w-1", "busy"), ("w-2", "idle"), ("w-3", "offline")]:
        state.take(connected(worker_id, status))
    state.take(
        ConnectorStatusChanged(worker_id="w-4", connector_id="c", service_type="s", status="error")
    )
    jobs = [job(JobSubmitted(job_id="j", job_data=DATA)) for _ in range(2)]
    jobs += [job(JobProgress(job_id="j", worker_id="w", progress=0.5))]
    jobs += [job(JobCompleted(job_id="j", worker_id="w")) for _ in range(3)]
    jobs += [job(JobFailed(job_id="j", error="e"))]
    assert state.snapshot(jobs)["system_stats"] == {
        "total_workers": 4,
        "active_workers": 1,
        "total_jobs": 7,
        "pending_jobs": 2,
        "active_jobs": 1,
        "completed_jobs": 3,
        "failed_jobs": 1,
    }


# --- jobs ----------------------------------------------------------------------------------------

DATA = JobData(id="j", job_type="comfyui", priority=5, payload={"a": 1}, created_at=1)


def job(*events: JobEvent) -> JobState:
    state = JobState("j")
    for event in events:
        match event:
            case JobSubmitted():
                state.take_submitted(event)
            case JobAssigned():
                state.take_assigned(event)
            case JobProgress():
                state.take_progress(event)
            case JobStatusChanged():
                state.take_status(event)
            case JobCompleted() | JobFailed():
                state.take_outcome(event)
            case _:
                raise AssertionError(event)
    return state


@pytest.mark.parametrize(
    ("status", "bucket"),
    [
        ("pending", "pending"),
        ("queued", "pending"),
        ("assigned", "active"),
        ("accepted", "active"),
        ("in_progress", "active"),
        ("completed", "completed"),
        ("failed", "failed"),
        ("cancelled", "failed"),
        ("timeout", "failed"),
        ("unworkable", "failed"),
    ],
)
def test_each_status_has_its_place(status: JobStatus, bucket: str) -> None:
    state = job(JobStatusChanged(job_id="j", old_status="pending", new_status=status))
    jobs = FullState(1).snapshot([state])["jobs"]
    assert {name: len(listed) for name, listed in jobs.items() if listed} == {bucket: 1}


def test_a_job_is_shown_as_described_and_as_it_became() -> None:
    state = job(
        JobSubmitted(job_id="j", job_data=DATA, timestamp=1),
        JobAssigned(job_id="j", worker_id="w-1", timestamp=2),
        JobProgress(job_id="j", worker_id="w-1", progress=0.5, timestamp=3),
    )
    assert FullState(1).snapshot([state])["jobs"]["active"] == [
        {
            "id": "j",
            "job_type": "comfyui",
            "status": "in_progress",
            "priority": 5,
            "payload": {"a": 1},
            "created_at": 1,
            "progress": 0.5,
            "worker_id": "w-1",
        }
    ]


def test_a_job_whose_submission_was_never_seen_is_shown_as_far_as_known() -> None:
    state = job(JobFailed(job_id="j", error="e", failed_at=7, timestamp=7))
    assert FullState(1).snapshot([state])["jobs"]["failed"] == [
        {"id": "j", "status": "failed", "error": "e", "completed_at": 7}
    ]
