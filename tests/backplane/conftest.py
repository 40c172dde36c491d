from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backplane.servers import RedisServer, require_redis_server


@pytest.fixture(scope="session")
def redis_program() -> str:
    return require_redis_server()


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
