"""Fixtures: a loop of the server's own, and the servers of `tests.client.harness` in it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.client.harness import (
    LoopThread,
    Proxy,
    RealServer,
    Script,
    ScriptedServer,
    loop_thread,
)


@pytest.fixture
def thread() -> Generator[LoopThread]:
    with loop_thread() as thread:
        yield thread


@pytest.fixture
def stack(thread: LoopThread) -> Generator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(thread: LoopThread, stack: ExitStack) -> Callable[..., RealServer]:
    def start(**arguments: Any) -> RealServer:
        server = RealServer(thread, **arguments).start()
        stack.callback(server.stop)
        return server

    return start


@pytest.fixture
def scripted(thread: LoopThread, stack: ExitStack) -> Callable[..., ScriptedServer]:
    def start(*scripts: Script) -> ScriptedServer:
        server = ScriptedServer(thread, *scripts).start()
        stack.callback(server.stop)
        return server

    return start


@pytest.fixture
def proxied(thread: LoopThread, stack: ExitStack) -> Callable[[int], Proxy]:
    def start(target: int) -> Proxy:
        proxy = Proxy(thread, target).start()
        stack.callback(proxy.stop)
        return proxy

    return start
