"""socketify (uWebSockets): its own publish to a topic. Reports its CPU time itself.

Its loop spins for seconds before it rests, so that the time between bursts says nothing: the
figure is what it used from the first event to the end of the turn after the last one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any

from socketify import App, AppListenOptions, OpCode

from benchmarks import frames

PORT = int(sys.argv[1])


def main() -> None:
    app: Any = App()
    count = 0

    def opened(connection: Any) -> None:
        connection.subscribe("monitors")

    def listening(config: Any) -> None:
        print(f"ready {config.port}", flush=True)

    async def burst(events: int, per_turn: int) -> None:
        nonlocal count
        began = time.process_time_ns()
        for _ in range(events // per_turn):
            for _ in range(per_turn):
                count += 1
                app.publish("monitors", frames.payload(count), OpCode.TEXT)
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        print(f"done {json.dumps({'cpu_ns': time.process_time_ns() - began})}", flush=True)

    def read() -> None:
        for line in sys.stdin:
            _, events, per_turn = line.split()
            asyncio.run_coroutine_threadsafe(
                burst(int(float(events)), int(float(per_turn))), app.loop.loop
            )
        app.loop.loop.call_soon_threadsafe(app.close)

    app.ws("/*", {"open": opened, "idle_timeout": 0, "send_pings_automatically": False})
    app.listen(AppListenOptions(port=PORT, host="127.0.0.1"), listening)
    threading.Thread(target=read, daemon=True).start()
    app.run()


if __name__ == "__main__":
    main()
