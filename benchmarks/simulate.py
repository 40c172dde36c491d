"""How many nodes, and what gives way first: `python -m benchmarks.simulate [--write-docs]`.

A node is one event loop: it takes what has arrived, works through it, writes once to each
connection that is to have some of it, and looks again. That is simulated event by event, with
events that arrive at random (Poisson), at the costs that the benchmarks measured. A write costs the
same however many frames are joined in it, so figures with much joining are upper bounds.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from pathlib import Path

from msgspec import Struct

PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "scaling.md"

# Microseconds of CPU, of a node unless it says otherwise; see docs/explanation/performance.md.
LOCAL = 10.0  # an event of one process without Redis: checked, encoded, latched, kept, routed
THROUGH_REDIS = 46.0  # an event read from Redis, of which redis-py's parsing is more than half
WITH_HIREDIS = 17.0  # the same, where hiredis is installed
CLIENT = 2.0  # the client's format of an event, and its frame
WRITE = 5.0  # a connection written to, once per turn of the loop
REDIS_APPEND, REDIS_READ = 2.4, 0.7  # of Redis: an event, and again for each node that reads it

# Bytes
PROCESS = 40 * 2**20
CONNECTION = (13 + 8) * 1024  # 8 KiB of them the kernel's
PER_CLIENT = 0.5 * 1024 + 2 * 0.3 * 1024  # its id, and subscriptions to two jobs
HISTORY = 10_000 * 0.6 * 1024
JOB = 0.7 * 1024

_READ_AT_ONCE = 256
_EVENTS = 40_000
_LATE = 0.1  # seconds: the p99 that still counts as live
# What is left is for handshakes, resumes and bad luck. Not a share of the time in which a node is
# busy: under light load it writes after each event, and joins more of them the busier it is.
_SHARE = 0.7


class Load(Struct, frozen=True, kw_only=True):
    """What one node has to do.

    Args:
        events: Per second that it reads: all of the stream's.
        mine: The share of them that is for a client connected here.
        monitors: Connected here; each has all events.
        event: µs of CPU of one.
    """

    events: float
    mine: float
    monitors: int
    event: float = THROUGH_REDIS


class Outcome(Struct, frozen=True):
    """How that went: the share of time it was busy, and latencies in seconds."""

    busy: float
    p50: float
    p99: float


def simulate(load: Load, events: int = _EVENTS) -> Outcome:
    """Play so many events through one node."""
    dice = random.Random(1)
    arrivals = []
    now = 0.0
    for _ in range(events):
        now += dice.expovariate(load.events)
        arrivals.append(now)
    now = busy = 0.0
    latencies: list[float] = []
    at = 0
    while at < events:
        now = max(now, arrivals[at])
        end = at
        work = load.monitors * WRITE
        while end < events and arrivals[end] <= now and end - at < _READ_AT_ONCE:
            work += load.event
            if dice.random() < load.mine:
                work += CLIENT + WRITE
            end += 1
        now += work / 1e6
        busy += work / 1e6
        latencies += [now - arrived for arrived in arrivals[at:end]]
        at = end
    latencies.sort()
    return Outcome(busy / now, latencies[events // 2], latencies[int(events * 0.99)])


def most(mine: float, monitors: int, event: float = THROUGH_REDIS) -> float:
    """Return how many events per second to give a node: a share of what it can bear."""
    low, high = 1.0, 1e6 / event
    for _ in range(10):
        middle = math.sqrt(low * high)
        found = simulate(Load(events=middle, mine=mine, monitors=monitors, event=event))
        low, high = (middle, high) if found.p99 <= _LATE else (low, middle)
    return _SHARE * low


def redis_busy(events: float, nodes: int) -> float:
    """Return the share of one core that Redis uses."""
    return events * (REDIS_APPEND + nodes * REDIS_READ) / 1e6


def memory(clients: int, monitors: int, jobs: int) -> float:
    """Return bytes of a node and of its connections in the kernel."""
    connections = clients + monitors
    return PROCESS + HISTORY + connections * CONNECTION + clients * PER_CLIENT + jobs * JOB


def first(node: float, redis: float, size: float) -> str:
    """Return what is nearest its limit, given the share of it that is used; memory of 8 GiB."""
    shares = {"a node's CPU": node, "Redis": redis, "memory": size / (8 * 2**30)}
    return max(shares, key=lambda name: shares[name])


# --- tables --------------------------------------------------------------------------------------


def rounded(value: float) -> str:
    """Return two digits that count."""
    digits = 1 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def one_node() -> str:
    """One process, without Redis: how many events per second, by who listens."""
    rows = []
    for clients, monitors in (
        (1_000, 10),
        (10_000, 100),
        (50_000, 100),
        (1_000, 1_000),
        (0, 5_000),
    ):
        limit = most(1.0 if clients else 0.0, monitors, LOCAL)
        load = Load(events=limit, mine=bool(clients), monitors=monitors, event=LOCAL)
        found = simulate(load)
        size = memory(clients, monitors, 10_000) / 2**20
        rows.append(
            [
                f"{clients:,}", f"{monitors:,}", rounded(limit), f"{found.p50 * 1e3:.1f} ms",
                f"{found.p99 * 1e3:.1f} ms", f"{size:,.0f} MiB",
            ]
        )  # fmt: skip
    return _table(["clients", "monitors", "events/s at most", "p50", "p99", "memory"], rows)


def several_nodes() -> str:
    """Ten thousand clients and a hundred monitors on each node; one stream."""
    rows = []
    for nodes in (1, 2, 5, 10, 20, 50):
        limit = most(1 / nodes, 100)
        found = simulate(Load(events=limit, mine=1 / nodes, monitors=100))
        redis = redis_busy(limit, nodes)
        size = memory(10_000, 100, 10_000)
        rows.append(
            [
                f"{nodes}", f"{nodes * 10_100:,}", rounded(limit),
                rounded(most(1 / nodes, 100, WITH_HIREDIS)), f"{found.p99 * 1e3:.1f} ms",
                f"{redis:.0%}", first(_SHARE, redis, size),
            ]
        )  # fmt: skip
    # fmt: off
    head = [
        "nodes", "connections", "events/s at most", "with hiredis", "p99", "Redis busy",
        "gives way first",
    ]
    # fmt: on
    return _table(head, rows)


def a_million() -> str:
    """A million clients, fifty thousand to a node: into how many streams?"""
    rows = []
    clients, each, monitors = 1_000_000, 50_000, 10
    nodes = clients // each
    for rate in (0.001, 0.01, 0.05, 0.1):
        total = clients * rate
        streams = next(
            count
            for count in (1, 2, 4, 5, 10, 20)
            if count == nodes or total / count <= most(count / nodes, monitors)
        )
        per_stream, readers = total / streams, nodes // streams
        found = simulate(Load(events=per_stream, mine=1 / readers, monitors=monitors))
        redis = redis_busy(per_stream, readers)
        size = memory(each, monitors, 50_000)
        used = _SHARE * per_stream / most(1 / readers, monitors)
        rows.append(
            [
                f"{rate:g}", f"{total:,.0f}", f"{streams} × {readers}", f"{per_stream:,.0f}",
                f"{used:.0%}", f"{found.p99 * 1e3:.1f} ms", f"{redis:.0%}",
                f"{size / 2**30:.1f} GiB", first(used, redis, size),
            ]
        )  # fmt: skip
    # fmt: off
    head = [
        "events/s per client", "events/s", "streams × nodes", "events/s per stream",
        "of a node's most", "p99", "Redis busy, each", "memory per node", "nearest its limit",
    ]
    # fmt: on
    return _table(head, rows)


def constants() -> str:
    """What all of it is computed from."""
    rows = [
        ["an event in one process", f"{LOCAL:g} µs of the node"],
        ["an event read from Redis", f"{THROUGH_REDIS:g} µs of every node"],
        ["the same with hiredis", f"{WITH_HIREDIS:g} µs of every node"],
        ["an event to a client: its format, its frame", f"{CLIENT:g} µs of its node"],
        ["a connection written to, per turn of the loop", f"{WRITE:g} µs of its node"],
        ["an event appended; read by one node", f"{REDIS_APPEND:g} µs; {REDIS_READ:g} µs of Redis"],
        ["a connection, kernel included", f"{CONNECTION // 1024} KiB"],
        ["a client with two subscriptions", f"{PER_CLIENT / 1024:.1f} KiB more"],
    ]
    return _table(["what", "costs"], rows)


TABLES = {
    "constants": constants, "one": one_node, "several": several_nodes, "million": a_million,
}  # fmt: skip


def write_docs(page: Path) -> None:
    """Replace what stands between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        begin, end = f"<!-- simulate {name}: begin -->", f"<!-- simulate {name}: end -->"
        if begin not in text or end not in text:
            raise SystemExit(f"{page}: expected {begin} and {end}")
        table = f"{begin}\n\n{make()}\n\n{end}"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text = re.sub(pattern, lambda _, new=table: new, text, flags=re.DOTALL)  # type: ignore[misc]
    page.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate")
    parser.add_argument(
        "--write-docs", action="store_true", help="into docs/explanation/scaling.md"
    )
    if parser.parse_args().write_docs:
        write_docs(PAGE)
        return
    for name, make in TABLES.items():
        print(f"{name}\n\n{make()}\n")


if __name__ == "__main__":
    main()
