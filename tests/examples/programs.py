"""Programs run as their readers would run them: in a process of their own, by what they print."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shlex
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PATIENCE = 60.0
"""Seconds after which what has not happened will not happen."""


class Program:
    """A running program."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def line(self) -> str:
        """Return the next line it prints."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.readline()).decode().rstrip("\n")

    async def rest(self) -> str:
        """Return what it prints until it ends."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.read()).decode()

    async def addresses(self, count: int) -> dict[str, str]:
        """Return the addresses it prints first, by what stands before the colon."""
        lines = [await self.line() for _ in range(count)]
        pairs = [line.partition(": ")[::2] for line in lines]
        return {name: address.strip() for name, address in pairs}

    async def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Tell it to end, and return its exit status."""
        self.process.send_signal(number)
        return await self.status()

    async def status(self) -> int:
        """Return its exit status, when it has ended."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def running(*command: str, cwd: Path = ROOT, session: bool = False) -> AsyncIterator[Program]:
    """Run a command, and see to it that it has ended afterwards."""
    # These tests may themselves be run by make; one that makes would take it for its parent.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=PIPE, start_new_session=session, env=environment
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def outcome(*command: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    """Run a command to its end; return its status and what it wrote to stdout and stderr."""
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def command_of(example: str) -> list[str]:
    """Return the command that an example's docstring tells to run it with, without options."""
    path = ROOT / "examples" / example
    found = re.search(r"^ *(python .*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    python, *arguments = shlex.split(found[1].partition("[")[0])
    assert (python, arguments) == ("python", [f"examples/{example}"])
    return [sys.executable, *arguments]


@contextmanager
def default_port() -> Iterator[None]:
    """Have port 3331, which programs take by default, to this test alone; skip if it is taken."""
    with (Path(tempfile.gettempdir()) / "jobqueue-broadcast-3331.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 3331)) == 0:
                pytest.skip("port 3331, which is the default, is in use")
        yield


def port_of(address: str) -> int:
    """Return the port of an address."""
    return int(address.split(":")[2].partition("/")[0])
