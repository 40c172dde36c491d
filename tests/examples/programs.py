"""Programs run as their readers would run them: in a process of their own, by what they print."""

from __future__ import annotations

import ast
import asyncio
import shlex
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]

PATIENCE = 30.0
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
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=PIPE, start_new_session=session
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
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring is not None
    command = next(
        line.strip() for line in docstring.splitlines() if line.strip().startswith("python ")
    )
    python, *arguments = shlex.split(command.partition("[")[0])
    assert (python, arguments) == ("python", [f"examples/{example}"])
    return [sys.executable, *arguments]


def port_of(address: str) -> int:
    """Return the port of an address."""
    return int(address.split(":")[2].partition("/")[0])
