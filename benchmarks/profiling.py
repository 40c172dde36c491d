"""Where the time goes between `broadcast` and a transport's `write`, without the system call.

Stages are timed by themselves, then everything is run under cProfile. Two shapes: events to 2,000
monitors, of which only what is done per member matters; and events to one client each, where
everything done per event does.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

from jobqueue_broadcast import EventBroadcaster, JobProgress
from jobqueue_broadcast.adapters.websockets.wires import PLAIN

_PEERS = 2_000
_PER_TURN = 16


class Transport:
    """Takes everything and does nothing."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        pass


class Connection:
    """What remains of a connection without its socket."""

    wire = PLAIN

    def __init__(self) -> None:
        self._transport = Transport()

    def write(self, batch: Any, /) -> None:
        self._transport.write(batch)

    def backlog(self) -> int:
        return 0

    def close(self, code: int, reason: str, /) -> None:
        pass

    def abort(self) -> None:
        pass


class Turns:
    """A broadcaster whose turns of the event loop are made here."""

    def __init__(self) -> None:
        self._soon: list[Callable[[], None]] = []
        self.broadcaster = EventBroadcaster()
        self.broadcaster.bind(self._soon.append, lambda *_: None)

    def end(self) -> None:
        soon, self._soon[:] = list(self._soon), []
        for call in soon:
            call()


def to_monitors(per_turn: int) -> Callable[[], None]:
    """Return what broadcasts 64 events to all monitors."""
    turns = Turns()
    for number in range(_PEERS):
        turns.broadcaster.add_monitor(f"m{number}", Connection())
    turns.end()

    def work() -> None:
        for begin in range(0, 64, per_turn):
            for number in range(begin, begin + per_turn):
                turns.broadcaster.broadcast(_event(number))
            turns.end()

    return work


def to_own_clients() -> Callable[[], None]:
    """Return what broadcasts one event to each client."""
    turns = Turns()
    for number in range(_PEERS):
        turns.broadcaster.add_client(f"c{number}", Connection())
        turns.broadcaster.subscribe_client_to_job(f"c{number}", f"job-{number}")
    turns.end()

    def work() -> None:
        for begin in range(0, _PEERS, _PER_TURN):
            for number in range(begin, begin + _PER_TURN):
                turns.broadcaster.broadcast(_event(number))
            turns.end()

    return work


def to_nobody() -> Callable[[], None]:
    """Return what broadcasts events while nobody is connected."""
    turns = Turns()

    def work() -> None:
        for number in range(_PEERS):
            turns.broadcaster.broadcast(_event(number))

    return work


def make_only() -> None:
    for number in range(_PEERS):
        _event(number)


def _event(number: int) -> JobProgress:
    return JobProgress(job_id=f"job-{number}", worker_id="worker-1", progress=0.25)


def _best(work: Callable[[], None], rounds: int = 15) -> float:
    """Return the CPU time of the fastest round, in ns."""
    times = []
    for _ in range(rounds):
        began = time.process_time_ns()
        work()
        times.append(time.process_time_ns() - began)
    return min(times)


def main() -> None:
    asyncio.run(_show())


async def _show() -> None:
    own = to_own_clients()
    print("CPU ns, without any system call; the fastest of 15 rounds")
    for name, work in {
        "making a typed event": make_only,
        "making and broadcasting it, nobody there": to_nobody(),
        "the same, to one client each": own,
    }.items():
        print(f"{name:48}{_best(work) / _PEERS:8.0f} per event")
    for per_turn in (1, 16, 64):
        each = _best(to_monitors(per_turn), 5) / 64 / _PEERS
        name = f"to {_PEERS} monitors, {per_turn} per turn"
        print(f"{name:48}{each:8.1f} per delivery, {each * per_turn:.0f} per write")
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(3):
        own()
    profile.disable()
    print(
        "\nEvents to one client each, under cProfile (which makes calls look dearer than they are):"
    )
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
