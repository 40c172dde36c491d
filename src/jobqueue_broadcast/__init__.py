"""Broadcasting for job queues: each event to every monitor and subscribed client, in order.

::

    broadcaster = EventBroadcaster()
    broadcaster.broadcast(JobProgress(job_id="job-123", worker_id="worker-1", progress=0.5))

This package does no I/O; the adapters in `jobqueue_broadcast.adapters` do.
"""

from jobqueue_broadcast.auth import ANONYMOUS, Principal, StaticTokens
from jobqueue_broadcast.broadcaster import EventBroadcaster
from jobqueue_broadcast.commands import JobInfo, SubmitJob
from jobqueue_broadcast.delivery import Subscriber
from jobqueue_broadcast.errors import BroadcastError, CloseCode, HookRefusal
from jobqueue_broadcast.event_types import declare_event
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
from jobqueue_broadcast.frames import Connection
from jobqueue_broadcast.handshake import Handshake, Refusal
from jobqueue_broadcast.predicates import (
    Filters,
    JobFacts,
    Subscription,
    is_job_event,
    should_client_receive_event,
    should_monitor_receive_event,
)
from jobqueue_broadcast.stats import BroadcasterStats
from jobqueue_broadcast.topics import ALL_TOPICS, Topic, event_topics

__version__ = "0.1.0"

__all__ = [
    "ALL_TOPICS",
    "ANONYMOUS",
    "BroadcastError",
    "BroadcasterStats",
    "CloseCode",
    "Connection",
    "ConnectorStatusChanged",
    "Event",
    "EventBroadcaster",
    "Filters",
    "Handshake",
    "HookRefusal",
    "HostInfo",
    "JobAssigned",
    "JobCompleted",
    "JobData",
    "JobEvent",
    "JobFacts",
    "JobFailed",
    "JobInfo",
    "JobProgress",
    "JobStatusChanged",
    "JobSubmitted",
    "MachineDisconnected",
    "MachineShutdown",
    "MachineStartup",
    "MachineStartupComplete",
    "MachineStartupStep",
    "MachineStatusChange",
    "MachineUpdate",
    "Principal",
    "Refusal",
    "StaticTokens",
    "SubmitJob",
    "Subscriber",
    "Subscription",
    "SystemCounts",
    "SystemStats",
    "Topic",
    "WorkerConnected",
    "WorkerData",
    "WorkerDisconnected",
    "WorkerStatusChanged",
    "declare_event",
    "event_topics",
    "is_job_event",
    "should_client_receive_event",
    "should_monitor_receive_event",
]
