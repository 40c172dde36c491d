"""Fixtures: a loop of the server's own, and the servers of `tests.client.harness` in it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.client.harness import (
    LoopThread,
    ProxyThread,
    RealServer,
    Script,
    ScriptedServer,
    TcpThread,
    loop_thread,
)
from tests.tcp import Handler, TcpServer


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
def raw(thread: LoopThread, stack: ExitStack) -> Callable[[Handler], TcpThread]:
    def start(handle: Handler) -> TcpThread:
        server = TcpThread(thread, TcpServer(handle)).start()
        stack.callback(server.stop)
        return server

    return start


@pytest.fixture
def proxied(thread: LoopThread, stack: ExitStack) -> Callable[[int], ProxyThread]:
    def start(target: int) -> ProxyThread:
        proxy = ProxyThread(thread, target).start()
        stack.callback(proxy.stop)
        return proxy

    return start
