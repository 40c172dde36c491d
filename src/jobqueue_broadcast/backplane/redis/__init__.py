"""Several servers and any number of workers over one Redis (6.2 or later) or Valkey.

`RedisBackplane` is a server's side, `Publisher` and `AsyncPublisher` are a worker's. Needs
`pip install jobqueue-broadcast[redis]`.
"""

from jobqueue_broadcast.backplane.redis.health import BackplaneState, OnState
from jobqueue_broadcast.backplane.redis.node import RedisBackplane, RedisStats
from jobqueue_broadcast.backplane.redis.publisher import AsyncPublisher, Publisher

__all__ = [
    "AsyncPublisher",
    "BackplaneState",
    "OnState",
    "Publisher",
    "RedisBackplane",
    "RedisStats",
]
