"""Broadcasting inside a `websockets` server that was there before, with paths of its own.

    python examples/embed_in_existing_server.py [--port 8765]

`/shout` is what this server did all along: it sends back, in capitals, what it is sent. Now every
such request is a job, which monitors see at `/ws/monitor/{id}`, on the same port.
"""

import argparse
import asyncio
import contextlib
import itertools

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as websockets_serve
from websockets.http11 import Request, Response

from jobqueue_broadcast import EventBroadcaster, JobCompleted, JobData, JobSubmitted
from jobqueue_broadcast.adapters.websockets import WebSocketEndpoint

broadcaster = EventBroadcaster()
endpoint = WebSocketEndpoint(broadcaster)  # takes authenticate=…, submit=… and so on, like serve()
numbers = itertools.count(1)


async def handle(websocket: ServerConnection) -> None:
    assert websocket.request is not None
    if websocket.request.path.startswith("/ws/"):
        await endpoint.handle(websocket)  # 1. connections to /ws/… are the endpoint's
    else:
        await shout(websocket)


async def process_request(websocket: ServerConnection, request: Request) -> Response | None:
    if request.path.startswith("/ws/"):
        return await endpoint.process_request(websocket, request)  # 2. and so are their handshakes
    return None if request.path == "/shout" else websocket.respond(404, "expected /shout\n")


async def shout(websocket: ServerConnection) -> None:
    async for message in websocket:
        job_id = f"job-{next(numbers)}"
        data = JobData(id=job_id, job_type="shout", created_at=broadcaster.clock.now_ms())
        broadcaster.broadcast(JobSubmitted(job_id=job_id, job_data=data))
        await websocket.send(message.upper())
        broadcaster.broadcast(JobCompleted(job_id=job_id, worker_id="this-server"))


async def main(port: int) -> None:
    async with (
        websockets_serve(
            handle,
            "localhost",
            port,
            process_request=process_request,
            create_connection=endpoint.connection_class,  # 3. it notices slow readers and floods
            compression=None,  # of websockets' own kind: it keeps a compressor per connection
        ) as server,
        endpoint.running(),  # 4. this keeps time for it
    ):
        port = server.sockets[0].getsockname()[1]
        print(f"Shout:   ws://localhost:{port}/shout")
        print(f"Monitor: ws://localhost:{port}/ws/monitor/monitor-1", flush=True)
        try:
            await server.serve_forever()
        finally:
            await endpoint.close(grace=5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Broadcasting inside an existing server.")
    parser.add_argument("--port", type=int, default=8765, help="0 takes a free one")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(parser.parse_args().port))
