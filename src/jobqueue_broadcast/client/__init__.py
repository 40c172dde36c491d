"""Python peers: a monitor and a client that reconnect, resume and tell of gaps.

::

    async with connect_monitor("ws://localhost:3331", monitor_id="wall") as monitor:
        async for event in monitor:
            ...

    async with connect_client("ws://localhost:3331", client_id="billing") as client:
        job_id = await client.submit("render", payload={"scene": 7})
        data = await client.result(job_id)

They run on asyncio and trio, through anyio.
"""

from jobqueue_broadcast.client._client import ClientPeer, Workflow, connect_client
from jobqueue_broadcast.client._items import Gap, ResyncPage, UnknownEvent
from jobqueue_broadcast.client._jobs import JobUpdate, JobWatch
from jobqueue_broadcast.client._monitor import MonitorItem, MonitorPeer, connect_monitor
from jobqueue_broadcast.client._peer import ConnectionOptions
from jobqueue_broadcast.client._reconnect import Backoff

__all__ = [
    "Backoff",
    "ClientPeer",
    "ConnectionOptions",
    "Gap",
    "JobUpdate",
    "JobWatch",
    "MonitorItem",
    "MonitorPeer",
    "ResyncPage",
    "UnknownEvent",
    "Workflow",
    "connect_client",
    "connect_monitor",
]
