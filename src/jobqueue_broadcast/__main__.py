"""The command line: `serve`, a relay that shows what workers publish; `tail`, a monitor's events.

A token is better given in the environment, as JOBQUEUE_TOKEN: arguments are seen by whoever lists
the machine's processes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from jobqueue_broadcast import Event, EventBroadcaster, StaticTokens, __version__
from jobqueue_broadcast.adapters.websockets import serve
from jobqueue_broadcast.client import MonitorItem, UnknownEvent, connect_monitor
from jobqueue_broadcast.errors import BroadcastError
from jobqueue_broadcast.events import encode

__all__ = ["main"]

_EPILOG = "Without --token, the environment's JOBQUEUE_TOKEN is used."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    chosen.token = chosen.token or os.environ.get("JOBQUEUE_TOKEN")
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("jobqueue_broadcast").setLevel(logging.INFO)
    try:
        asyncio.run(_until_told_to_end(chosen.run(chosen)))
    except BrokenPipeError:
        # Who reads our output has seen enough. Python would complain at exit, on flushing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (BroadcastError, OSError, ModuleNotFoundError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobqueue-broadcast", description="Show, live, what a job queue does."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="command", required=True)

    server = commands.add_parser(
        "serve",
        help="relay what workers publish to monitors and clients",
        description="Relay what workers publish, through Redis, to monitors and clients.",
        epilog=_EPILOG,
    )
    server.add_argument("--host", default="localhost")
    server.add_argument("--port", type=int, default=3331, help="0 takes a free one")
    server.add_argument("--token", help="needed to listen beyond this machine")
    server.add_argument("--dashboard", action=argparse.BooleanOptionalAction, default=True)
    server.add_argument("--redis", metavar="URL", help="where workers publish: redis://…")
    server.set_defaults(run=_serve)

    tail = commands.add_parser(
        "tail",
        help="print a monitor's events",
        description="Print what a monitor is sent, one JSON object a line.",
        epilog=_EPILOG,
    )
    tail.add_argument("url", metavar="URL", help="ws://host:port, or with /ws/monitor/{id}")
    tail.add_argument("--topics", help="separated by commas; all without it")
    tail.add_argument("--token")
    tail.set_defaults(run=_tail)
    return parser


async def _until_told_to_end(running: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(running)

    def end(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(task.cancel)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _serve(chosen: argparse.Namespace) -> None:
    async with AsyncExitStack() as stack:
        backplane = _redis_backplane(chosen.redis) if chosen.redis else None
        broadcaster = EventBroadcaster(backplane=backplane)
        if backplane is None:
            print("Without --redis nobody can publish to this server.", file=sys.stderr)
        server = await stack.enter_async_context(
            serve(
                broadcaster,
                chosen.host,
                chosen.port,
                authenticate=StaticTokens({chosen.token: "operator"}) if chosen.token else None,
                authorize=lambda principal, action, job_id: True,
                dashboard=chosen.dashboard,
            )
        )
        host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
        if chosen.dashboard:
            print(f"Dashboard: http://{host}:{server.port}/")
        print(f"Monitor:   ws://{host}:{server.port}/ws/monitor/monitor-1")
        print(f"Client:    ws://{host}:{server.port}/ws/client/client-1", flush=True)
        await asyncio.get_running_loop().create_future()


def _redis_backplane(url: str) -> Any:
    try:
        # An optional dependency, which only this option needs.
        from jobqueue_broadcast.backplane.redis import RedisBackplane
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"--redis needs `pip install jobqueue-broadcast[redis]` ({error})"
        ) from None
    return RedisBackplane(url)


async def _tail(chosen: argparse.Namespace) -> None:
    base, _, given_id = chosen.url.rstrip("/").partition("/ws/monitor/")
    monitor_id = given_id or f"tail-{secrets.token_hex(4)}"
    topics = chosen.topics.split(",") if chosen.topics else None
    async with connect_monitor(
        base, monitor_id=monitor_id, topics=topics, token=chosen.token
    ) as monitor:
        async for item in monitor:
            print(_line(item), flush=True)


def _line(item: MonitorItem) -> str:
    if isinstance(item, Event):
        return encode(item).decode()
    shown = item.data if isinstance(item, UnknownEvent) else {"type": "gap", "reason": item.reason}
    return msgspec.json.encode(shown).decode()


if __name__ == "__main__":
    sys.exit(main())
