"""How a measured program is driven: it says `ready PORT`, then answers each line with `done JSON`.

Commands are a name and numbers. What every asyncio server has in common is here: `burst`, events at
so many per turn of the event loop, with pauses in which readers catch up; and `flood`, events at a
rate, whether or not they can be sent.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

Command: TypeAlias = Callable[..., Awaitable[object]]
Send: TypeAlias = Callable[[int, "int | None"], Any]

# The readers read at half the speed of the writer, at worst, before they are behind.
_PAUSE_SHARE = 0.5
_SHORTEST_WORK = 0.005
_MOST_PER_TURN = 64


async def obey(port: int, commands: Mapping[str, Command]) -> None:
    """Announce the port, then carry out commands until the standard input ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(f"ready {port}", flush=True)
    while line := await reader.readline():
        name, *arguments = line.decode().split()
        result = await commands[name](*(float(argument) for argument in arguments))
        print(f"done {json.dumps(result)}", flush=True)


def commands_for(send: Send, *, awaits: bool = False) -> dict[str, Command]:
    """Return the commands of a server that sends its n-th event with `send(n, due)`.

    Args:
        send: Sends an event to everyone; `due` is when it was due, or `None` for now.
        awaits: Whether what `send` returns is to be awaited.
    """
    count = 0

    async def one(due: int | None = None) -> None:
        nonlocal count
        count += 1
        sent = send(count, due)
        if awaits:
            await sent

    async def burst(events: float, per_turn: float) -> dict[str, Any]:
        left = int(events)
        worked = 0.0
        while left > 0:
            began = time.perf_counter()
            for _ in range(min(left, int(per_turn))):
                await one()
            left -= int(per_turn)
            # One turn of the loop, so that what is pending goes out; then a pause, if it pays.
            await asyncio.sleep(0)
            worked += time.perf_counter() - began
            if worked > _SHORTEST_WORK:
                await asyncio.sleep(_PAUSE_SHARE * worked)
                worked = 0.0
        return {}

    async def flood(rate: float, seconds: float) -> dict[str, Any]:
        began = time.monotonic_ns()
        end = began + int(seconds * 1e9)
        gap = 1e9 / rate
        sent = 0
        while (now := time.monotonic_ns()) < end:
            most = min(int((now - began) / gap) - sent, _MOST_PER_TURN)
            for _ in range(most):
                await one(began + int(sent * gap))
                sent += 1
                if time.monotonic_ns() >= end:
                    break
            await asyncio.sleep(0 if most else 0.0005)
        return {"sent": sent, "due": int(rate * seconds)}

    return {"burst": burst, "flood": flood, "collect": collect}


async def collect() -> dict[str, Any]:
    """Collect garbage, for figures of memory."""
    gc.collect()
    return {}
