"""Starlette on uvicorn (its own choice of loop and protocol): `send_text` to each connection."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from benchmarks import frames
from benchmarks.servers.control import commands_for
from benchmarks.servers.uvicorn_server import run_uvicorn, serve_uvicorn

connections: set[WebSocket] = set()


async def handle(connection: WebSocket) -> None:
    await connection.accept()
    connections.add(connection)
    try:
        while True:
            await connection.receive_text()
    except WebSocketDisconnect:
        pass
    finally:
        connections.discard(connection)


async def send(number: int, due: int | None) -> None:
    text = frames.payload(number, due)
    for connection in list(connections):
        await connection.send_text(text)


async def main() -> None:
    app = Starlette(routes=[WebSocketRoute("/{path:path}", handle)])
    await serve_uvicorn(app, commands_for(send, awaits=True))


if __name__ == "__main__":
    run_uvicorn(main())
