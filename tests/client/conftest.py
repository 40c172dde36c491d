"""Fixtures: a loop of the server's own, and the servers of `tests.client.harness` in it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import Any, TypeVar

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

S = TypeVar("S", RealServer, ScriptedServer, TcpThread, ProxyThread)


def started(stack: ExitStack, server: S) -> S:
    """Start a server, to be stopped when the test is over."""
    stack.callback(server.start().stop)
    return server


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
        return started(stack, RealServer(thread, **arguments))

    return start


@pytest.fixture
def scripted(thread: LoopThread, stack: ExitStack) -> Callable[..., ScriptedServer]:
    def start(*scripts: Script) -> ScriptedServer:
        return started(stack, ScriptedServer(thread, *scripts))

    return start


@pytest.fixture
def raw(thread: LoopThread, stack: ExitStack) -> Callable[[Handler], TcpThread]:
    def start(handle: Handler) -> TcpThread:
        return started(stack, TcpThread(thread, TcpServer(handle)))

    return start


@pytest.fixture
def proxied(thread: LoopThread, stack: ExitStack) -> Callable[[int], ProxyThread]:
    def start(target: int) -> ProxyThread:
        return started(stack, ProxyThread(thread, target))

    return start
