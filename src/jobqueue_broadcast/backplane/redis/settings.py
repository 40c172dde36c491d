"""What a node's reader and writer are made with."""

from __future__ import annotations

from msgspec import Struct

from jobqueue_broadcast.backplane.redis.entries import Keys

__all__ = ["Settings"]


class Settings(Struct, frozen=True, kw_only=True):
    """See `RedisBackplane`, whose arguments these are; `node` names it in its entries."""

    url: str
    keys: Keys
    node: str
    retained: int
    job_ttl: int
    block: float
    timeout: float
    probe_interval: float
    deaf_after: float
