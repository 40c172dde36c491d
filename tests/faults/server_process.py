"""A server in a process of its own that can be killed: told what to broadcast on standard input.

Each line is JSON, `{"restore": [frames]}` or `{"broadcast": [frames]}`, and is answered with the
number of events broadcast so far.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from jobqueue_broadcast import EventBroadcaster
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.event_types import decode_event


def carry_out(broadcaster: EventBroadcaster, line: dict[str, Any]) -> None:
    """Do what one line asks."""
    for name, argument in line.items():
        events = [decode_event(json.dumps(frame).encode()) for frame in argument]
        if name == "restore":
            broadcaster.restore(events)
        else:
            for event in events:
                broadcaster.broadcast(event)


async def main(port: int) -> None:
    """Serve until standard input ends."""
    broadcaster = EventBroadcaster(client_retention=300.0)
    async with serve(broadcaster, "127.0.0.1", port) as server:
        print(server.port, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            carry_out(broadcaster, json.loads(line))
            await asyncio.sleep(0)
            print(broadcaster.stats().events_total, flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
