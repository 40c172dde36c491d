"""python-socketio on uvicorn: `emit` to everybody, over its WebSocket transport."""

from __future__ import annotations

import json
from typing import Any

import socketio

from benchmarks import frames
from benchmarks.servers.control import commands_for
from benchmarks.servers.uvicorn_server import run_uvicorn, serve_uvicorn


async def main() -> None:
    # Its pings would count as frames; everybody's are off.
    server = socketio.AsyncServer(async_mode="asgi", ping_interval=86_400)

    async def send(number: int, due: int | None) -> None:
        event: dict[str, Any] = json.loads(frames.payload(number, due))
        await server.emit("event", event)

    await serve_uvicorn(socketio.ASGIApp(server), commands_for(send, awaits=True))


if __name__ == "__main__":
    run_uvicorn(main())
