"""How Starlette's and python-socketio's programs run: on uvicorn, with what it chooses itself."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Mapping
from typing import Any

import uvicorn

from benchmarks.servers.control import Command, obey


async def serve_uvicorn(application: Any, commands: Mapping[str, Command]) -> None:
    """Serve an application until the standard input ends."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(application, log_level="warning", lifespan="off", ws_ping_interval=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    await obey(listening.getsockname()[1], commands)
    server.force_exit = server.should_exit = True
    await task


def run_uvicorn(main: Coroutine[Any, Any, None]) -> None:
    """Run on the event loop that uvicorn would choose: uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
