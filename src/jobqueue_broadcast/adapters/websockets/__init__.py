"""The adapter for the `websockets` library."""

from jobqueue_broadcast.adapters.websockets.connections import BroadcastConnection
from jobqueue_broadcast.adapters.websockets.endpoint import WebSocketEndpoint
from jobqueue_broadcast.adapters.websockets.gate import ConnectionLimits
from jobqueue_broadcast.adapters.websockets.redaction import redacted_logger
from jobqueue_broadcast.adapters.websockets.server import BroadcastServer, serve
from jobqueue_broadcast.adapters.websockets.stats import EndpointStats
from jobqueue_broadcast.session import SessionLimits

__all__ = [
    "BroadcastConnection",
    "BroadcastServer",
    "ConnectionLimits",
    "EndpointStats",
    "SessionLimits",
    "WebSocketEndpoint",
    "redacted_logger",
    "serve",
]
