"""Hypothesis strategies that several test files share: events of all classes, subscriptions.

Ids, types and priorities come mostly from small pools, so that events, filters and subscriptions
meet; and now and then they are any text at all, quotes, control characters and emoji included.
"""

from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from jobqueue_broadcast import events as ev
from jobqueue_broadcast.events import TERMINAL_STATUSES, UNSET, Event, JobEvent
from jobqueue_broadcast.predicates import Filters, JobFacts, Subscription
from jobqueue_broadcast.topics import ALL_TOPICS

__all__ = [
    "NASTY",
    "events",
    "events_of",
    "facts",
    "filters",
    "ids",
    "job_events",
    "job_ids",
    "job_statuses",
    "job_types",
    "json_objects",
    "json_values",
    "machine_ids",
    "priorities",
    "subscriptions",
    "texts",
    "timestamps",
    "topics",
    "worker_ids",
]

# What has broken encoders, parsers, logs and terminals before.
NASTY = (
    '"',
    "\\",
    "\x00",
    "\x1b[2J",
    "\r\n",
    "\x7f",
    "\u2028\u2029",
    "\ufeff",
    "\ufffe\uffff",
    "\u202egpj.exe",
    "e\u0301",
    "👩‍🚀🏳️‍🌈",
    "</script><script>",
    "{{7*7}}${7*7}%s{0}",
    "null",
    "__proto__",
    '","position":"',
)

texts: SearchStrategy[str] = st.sampled_from(NASTY) | st.text(max_size=12)
ids: SearchStrategy[str] = st.sampled_from(NASTY) | st.text(min_size=1, max_size=128)
names: SearchStrategy[str] = ids

_JOBS = st.sampled_from(["job-1", "job-2", "job-3"])
_WORKERS = st.sampled_from(["worker-1", "worker-2", "worker-3"])
_MACHINES = st.sampled_from(["machine-1", "machine-2"])
_JOB_TYPES = st.sampled_from(["comfyui", "a1111", "llm"])

# From the pools alone; `_mostly` mixes in any text.
job_ids: SearchStrategy[str] = _JOBS
worker_ids: SearchStrategy[str] = _WORKERS
machine_ids: SearchStrategy[str] = _MACHINES
job_types: SearchStrategy[str] = _JOB_TYPES
priorities: SearchStrategy[int] = st.integers(-3, 12)
topics: SearchStrategy[str] = st.sampled_from(sorted(ALL_TOPICS))


def _mostly(pool: SearchStrategy[str]) -> SearchStrategy[str]:
    return st.one_of(pool, pool, pool, ids)


timestamps: SearchStrategy[int] = st.integers(1_642_700_000_000, 1_642_700_000_009) | st.integers(
    1, 2**63 - 1
)
_times = st.just(0) | timestamps  # 0: filled in by `broadcast`
_counts = st.integers(0, 9) | st.integers(0, 2**63 - 1)
_integers = st.integers(-(2**63), 2**63 - 1)
_fractions = st.floats(0.0, 1.0)

_scalars = st.none() | st.booleans() | _integers | st.floats(allow_nan=False, allow_infinity=False)
json_values: SearchStrategy[Any] = st.recursive(
    _scalars | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
json_objects: SearchStrategy[dict[str, Any]] = st.dictionaries(texts, json_values, max_size=3)

job_statuses: SearchStrategy[Any] = st.sampled_from(
    sorted(TERMINAL_STATUSES | {"pending", "queued", "assigned", "accepted", "in_progress"})
)


def _maybe(values: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.just(UNSET) | values


_job = _mostly(job_ids)
_worker = _mostly(worker_ids)
_machine = _mostly(machine_ids)


def _job_data() -> SearchStrategy[ev.JobData]:
    return st.builds(
        ev.JobData,
        id=_job,
        job_type=_mostly(job_types),
        priority=priorities | _integers,
        requirements=_maybe(json_objects),
        payload=_maybe(json_objects),
        workflow_id=_maybe(texts),
        workflow_priority=_maybe(_integers),
        workflow_datetime=_maybe(_counts),
        current_step=_maybe(_counts),
        total_steps=_maybe(_counts),
        customer_id=_maybe(texts),
        created_at=_times,
    )


def _worker_data() -> SearchStrategy[ev.WorkerData]:
    return st.builds(
        ev.WorkerData,
        id=_worker,
        status=st.sampled_from(["idle", "busy"]) | names,
        capabilities=json_objects,
        connected_at=_times,
        jobs_completed=_counts,
        jobs_failed=_counts,
    )


def _host_info() -> SearchStrategy[ev.HostInfo]:
    return st.builds(
        ev.HostInfo,
        hostname=names,
        ip_address=_maybe(texts),
        os=texts,
        cpu_cores=_counts,
        total_ram_gb=st.floats(0.0, allow_infinity=False),
        gpu_count=_counts,
        gpu_models=_maybe(st.lists(texts, max_size=3)),
    )


def _system_counts() -> SearchStrategy[ev.SystemCounts]:
    return st.builds(
        ev.SystemCounts,
        total_workers=_counts,
        active_workers=_counts,
        total_jobs=_counts,
        pending_jobs=_counts,
        active_jobs=_counts,
        completed_jobs=_counts,
        failed_jobs=_counts,
    )


def _of(cls: type[Event], **fields: SearchStrategy[Any]) -> SearchStrategy[Any]:
    return st.builds(cls, timestamp=_times, **fields)


_JOB_EVENTS: dict[type[Event], SearchStrategy[Any]] = {
    ev.JobSubmitted: _of(ev.JobSubmitted, job_id=_job, job_data=_job_data()),
    ev.JobAssigned: _of(ev.JobAssigned, job_id=_job, worker_id=_worker, assigned_at=_times),
    ev.JobStatusChanged: _of(
        ev.JobStatusChanged,
        job_id=_job,
        old_status=job_statuses,
        new_status=job_statuses,
        worker_id=_maybe(_worker),
    ),
    ev.JobProgress: _of(
        ev.JobProgress,
        job_id=_job,
        worker_id=_worker,
        progress=_fractions,
        status=_maybe(texts),
        message=_maybe(texts),
    ),
    ev.JobCompleted: _of(
        ev.JobCompleted,
        job_id=_job,
        worker_id=_worker,
        result=_maybe(json_values),
        completed_at=_times,
    ),
    ev.JobFailed: _of(
        ev.JobFailed, job_id=_job, error=texts, worker_id=_maybe(_worker), failed_at=_times
    ),
}
_OTHER_EVENTS: dict[type[Event], SearchStrategy[Any]] = {
    ev.WorkerConnected: _of(
        ev.WorkerConnected, worker_id=_worker, machine_id=_machine, worker_data=_worker_data()
    ),
    ev.WorkerDisconnected: _of(ev.WorkerDisconnected, worker_id=_worker, machine_id=_machine),
    ev.WorkerStatusChanged: _of(
        ev.WorkerStatusChanged,
        worker_id=_worker,
        old_status=names,
        new_status=names,
        current_job_id=_maybe(_job),
    ),
    ev.ConnectorStatusChanged: _of(
        ev.ConnectorStatusChanged,
        worker_id=_worker,
        connector_id=ids,
        service_type=names,
        status=st.sampled_from(["active", "inactive", "error"]),
        service_info=_maybe(json_objects),
    ),
    ev.MachineStartup: _of(
        ev.MachineStartup,
        machine_id=_machine,
        phase=st.sampled_from(["starting", "configuring", "ready"]),
        host_info=_maybe(_host_info()),
    ),
    ev.MachineStartupStep: _of(
        ev.MachineStartupStep,
        machine_id=_machine,
        step_name=names,
        step_phase=st.sampled_from(
            ["shared_setup", "core_infrastructure", "ai_services", "supporting_services"]
        ),
        step_data=_maybe(json_objects),
        elapsed_ms=_counts,
    ),
    ev.MachineStartupComplete: _of(
        ev.MachineStartupComplete,
        machine_id=_machine,
        total_startup_time_ms=_counts,
        worker_count=_counts,
        services_started=st.lists(texts, max_size=3),
    ),
    ev.MachineShutdown: _of(ev.MachineShutdown, machine_id=_machine, reason=_maybe(texts)),
    ev.MachineDisconnected: _of(ev.MachineDisconnected, machine_id=_machine, reason=_maybe(texts)),
    ev.MachineUpdate: _of(
        ev.MachineUpdate, machine_id=_machine, structure=json_objects, status_data=json_objects
    ),
    ev.MachineStatusChange: _of(
        ev.MachineStatusChange,
        machine_id=_machine,
        structure=json_objects,
        status_data=json_objects,
    ),
    ev.SystemStats: _of(ev.SystemStats, stats=_system_counts()),
}
_EVENTS = _JOB_EVENTS | _OTHER_EVENTS


def events() -> SearchStrategy[Event]:
    """Events of every built-in class."""
    return st.one_of(list(_EVENTS.values()))


def job_events() -> SearchStrategy[JobEvent]:
    """Job events of every built-in class."""
    return st.one_of(list(_JOB_EVENTS.values()))


def events_of(cls: type[Event]) -> SearchStrategy[Any]:
    """Events of one built-in class."""
    return _EVENTS[cls]


def facts() -> SearchStrategy[JobFacts]:
    """What is known of some job."""
    return st.builds(JobFacts, job_type=job_types, priority=priorities)


def filters() -> SearchStrategy[Filters]:
    """Filters, from the empty one to all three at once."""
    return st.builds(
        Filters,
        job_types=_maybe(st.frozensets(job_types, min_size=1, max_size=2)),
        worker_ids=_maybe(st.frozensets(worker_ids, min_size=1, max_size=2)),
        priority_range=_maybe(
            st.tuples(priorities, priorities).map(lambda pair: (min(pair), max(pair)))
        ),
    )


def subscriptions() -> SearchStrategy[Subscription]:
    """Subscriptions to one or more of the built-in topics, with filters or without."""
    return st.builds(
        Subscription,
        topics=st.frozensets(topics, min_size=1),
        filters=st.just(Filters()) | filters(),
    )
