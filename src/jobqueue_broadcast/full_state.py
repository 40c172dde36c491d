"""Everything as it is now: workers, machines and figures, and the snapshot with the jobs, too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET, structs

from jobqueue_broadcast.events import (
    ConnectorStatusChanged,
    Event,
    MachineDisconnected,
    MachineEvent,
    MachineShutdown,
    MachineStartup,
    MachineStartupComplete,
    MachineStatusChange,
    MachineUpdate,
    SystemCounts,
    SystemStats,
    WorkerConnected,
    WorkerDisconnected,
    WorkerEvent,
    WorkerStatusChanged,
)
from jobqueue_broadcast.job_states import JobState

__all__ = ["FullState"]

_BUCKETS = {
    "pending": "pending",
    "queued": "pending",
    "assigned": "active",
    "accepted": "active",
    "in_progress": "active",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
    "timeout": "failed",
    "unworkable": "failed",
}


class FullState:
    """The workers and machines that are there, and the newest system figures.

    Args:
        limit: How many workers, and how many machines, are kept; the one heard of least recently
            goes first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.evicted = 0
        self._workers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._machines: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._stats: SystemCounts | None = None

    @property
    def worker_count(self) -> int:
        """How many workers are known."""
        return len(self._workers)

    @property
    def machine_count(self) -> int:
        """How many machines are known."""
        return len(self._machines)

    def take(self, event: Event) -> None:
        """Fold an event in."""
        if isinstance(event, WorkerEvent):
            self._take_worker(event)
        elif isinstance(event, MachineEvent):
            self._take_machine(event)
        elif isinstance(event, SystemStats):
            self._stats = event.stats

    def snapshot(self, jobs: Iterable[JobState]) -> dict[str, Any]:
        """Return `data` of a `full_state_snapshot`, as plain JSON values."""
        buckets: dict[str, list[dict[str, Any]]] = {
            "pending": [],
            "active": [],
            "completed": [],
            "failed": [],
        }
        for job in jobs:
            buckets[_BUCKETS[job.status]].append(_job(job))
        return {
            "workers": {key: dict(value) for key, value in self._workers.items()},
            "machines": {key: dict(value) for key, value in self._machines.items()},
            "jobs": buckets,
            "system_stats": structs.asdict(self._stats or self._derived_stats(buckets)),
        }

    def _take_worker(self, event: WorkerEvent) -> None:
        if isinstance(event, WorkerDisconnected):
            self._workers.pop(event.worker_id, None)
            return
        worker = self._entry(self._workers, event.worker_id)
        match event:
            case WorkerConnected():
                # It begins anew, also where the end of its last connection was never heard of.
                worker.pop("current_job_id", None)
                worker.update(structs.asdict(event.worker_data), machine_id=event.machine_id)
            case WorkerStatusChanged():
                worker["status"] = event.new_status
                worker.pop("current_job_id", None)
                if event.current_job_id is not UNSET:
                    worker["current_job_id"] = event.current_job_id
            case ConnectorStatusChanged():
                connectors = dict(worker.get("connectors", {}))
                connectors[event.connector_id] = {
                    "service_type": event.service_type,
                    "status": event.status,
                }
                worker["connectors"] = connectors
            case _:
                pass

    def _take_machine(self, event: MachineEvent) -> None:
        if isinstance(event, MachineDisconnected):
            self._machines.pop(event.machine_id, None)
            return
        machine = self._entry(self._machines, event.machine_id)
        match event:
            case MachineStartup():
                machine["phase"] = event.phase
                if event.host_info is not UNSET:
                    machine["host_info"] = msgspec.to_builtins(event.host_info)
            case MachineStartupComplete():
                machine["phase"] = "ready"
                machine["services_started"] = event.services_started
            case MachineShutdown():
                machine["phase"] = "shutdown"
            case MachineUpdate() | MachineStatusChange():
                machine["structure"] = event.structure
                machine["status_data"] = event.status_data
            case _:
                pass

    def _entry(self, table: OrderedDict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        """Return the entry of a worker or machine, made when missing, as the newest."""
        entry = table.pop(key, None) or {"id": key}
        table[key] = entry
        if len(table) > self.limit:
            table.popitem(last=False)
            self.evicted += 1
        return entry

    def _derived_stats(self, buckets: dict[str, list[dict[str, Any]]]) -> SystemCounts:
        """Count what is known here, for a host that broadcasts no `SystemStats`."""
        counts = {name: len(jobs) for name, jobs in buckets.items()}
        return SystemCounts(
            total_workers=len(self._workers),
            active_workers=sum(
                worker.get("status") not in (None, "idle", "offline")
                for worker in self._workers.values()
            ),
            total_jobs=sum(counts.values()),
            pending_jobs=counts["pending"],
            active_jobs=counts["active"],
            completed_jobs=counts["completed"],
            failed_jobs=counts["failed"],
        )


def _job(job: JobState) -> dict[str, Any]:
    """Return a job of the snapshot: its description, and what became of it."""
    described = structs.asdict(job.data) if job.data else {}
    known = structs.asdict(job.info())
    return {key: value for key, value in {**described, **known}.items() if value is not UNSET}
