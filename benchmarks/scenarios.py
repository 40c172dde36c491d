"""S1 to S4 and S6 to S8: what goes over sockets."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from msgspec import Struct

from benchmarks import frames
from benchmarks.programs import (
    ALWAYS,
    NCHAN,
    NODE,
    OTHERS,
    OURS,
    OURS_DEFLATE,
    RAW,
    WEBSOCKETS,
    WEBSOCKETS_DEFLATE,
    Pair,
    Peer,
    memory,
    missing,
)
from benchmarks.results import Reading, Results

CPU = "CPU µs per delivered message"
SIXTEEN = "16 events per turn"
ONE = "1 event per turn"


class Settings(Struct, frozen=True, kw_only=True):
    """How much is measured.

    Args:
        connections: To each server.
        runs: How often each figure is measured, in turns with the others.
        seconds: CPU time to spend on one figure of one run, about.
        flood_seconds: How long overload lasts.
        retained: Events to resume over.
        core: Clients of the larger population of S5, and events and jobs for figures of memory.
        others: Whether to measure peers besides `websockets` and raw transports.
    """

    connections: int = 2_000
    runs: int = 5
    seconds: float = 0.5
    flood_seconds: float = 3.0
    retained: int = 10_000
    core: int = 100_000
    others: bool = True


class Bench:
    """One run of the program."""

    def __init__(self, settings: Settings, results: Results, tell: Callable[[str], None]) -> None:
        self.settings = settings
        self.results = results
        self.tell = tell

    # --- S1, S2: one frame to everybody ----------------------------------------------------------

    def fan_out(self, wanted: set[str]) -> None:
        peers: list[Peer] = list(ALWAYS)
        for peer in OTHERS if self.settings.others else ():
            lack = missing(peer)
            if lack is None:
                peers.append(peer)
            else:
                self.results.absent[peer.name] = lack
        self._bursts("S1", "S2", wanted, peers)
        compare = self.results.compare
        base, floor = WEBSOCKETS.name, RAW.name
        ours, ours_one = (SIXTEEN, OURS.name), (ONE, OURS.name)
        text = "CPU per delivered message, 16 events per turn, over that of"
        compare("S1", f"{text} {base}", ours, (SIXTEEN, base), 1 / 20)
        compare("S1", f"{text} {NCHAN.name}", ours, (SIXTEEN, NCHAN.name), 1 / 16)
        compare("S1", f"{text} {NODE.name}", ours, (SIXTEEN, NODE.name), 1 / 16)
        text = "CPU per delivered message, 1 event per turn, over that of"
        compare("S2", f"{text} {base}", ours_one, (ONE, base), 1.0)
        compare("S2", f"{text} {floor}", ours_one, (ONE, floor), 1.15)

    # --- S3: the same, compressed ----------------------------------------------------------------

    def deflate(self) -> None:
        self._bursts("S3", "S3", {"S3"}, [OURS_DEFLATE, WEBSOCKETS_DEFLATE])
        base, ours = WEBSOCKETS_DEFLATE.name, OURS_DEFLATE.name
        text = f"over that of {base}"
        self.results.compare(
            "S3", f"CPU, 16 events per turn, {text}", (SIXTEEN, ours), (SIXTEEN, base), 1 / 30
        )
        self.results.compare(
            "S3", f"CPU, 1 event per turn, {text}", (ONE, ours), (ONE, base), 1 / 2.5
        )

    # --- S4: memory ------------------------------------------------------------------------------

    def idle_memory(self) -> None:
        what = "memory per idle connection"
        for run in range(self.settings.runs):
            for peer in _turned((OURS, WEBSOCKETS, OURS_DEFLATE, WEBSOCKETS_DEFLATE), run):
                self.tell(f"S4 {peer.name}")
                with Pair(peer, 50) as pair:
                    before = self._settled_memory(pair)
                    path = peer.path.replace("{i}", "x{i}")
                    count = self.settings.connections
                    pair.reader.connect(peer, pair.server.port, count, path)
                    grown = self._settled_memory(pair) - before
                    self.results.add("S4", what, peer.name, "KiB", grown / count / 1024)
        for ours, base in ((OURS, WEBSOCKETS), (OURS_DEFLATE, WEBSOCKETS_DEFLATE)):
            self.results.compare(
                "S4",
                f"memory per idle connection of {ours.name}, over a bare one of {base.name}",
                (what, ours.name),
                (what, base.name),
                1.15,
            )

    def _settled_memory(self, pair: Pair) -> int:
        # A handshake leaves tasks and buffers behind for a moment.
        time.sleep(1.0)
        pair.server.command("collect")
        return memory(pair.server.pid)

    # --- S6: every client its own job ------------------------------------------------------------

    def own_jobs(self) -> None:
        count = self.settings.connections
        width = len(frames.job_id(0))
        path = f"/ws/client/c{{i}}?jobs=j{{i:0{width - 1}d}}"
        what = f"events of {count} jobs, one client each, 16 per turn"
        client_frame = {
            "type": "update_job_progress",
            "timestamp": frames.TIMESTAMP,
            "job_id": frames.job_id(0),
            "progress": frames.PROGRESS,
        }
        size = len(json.dumps(client_frame, separators=(",", ":")))
        with ExitStack() as stack:
            ours = stack.enter_context(Pair(OURS, count, path))
            raw = stack.enter_context(Pair(RAW, count))
            rounds = max(2, int(self.settings.seconds / (count * 10e-6)))
            for run in range(-1, self.settings.runs):
                for pair in _turned((ours, raw), run):
                    events = rounds * count
                    last = count if pair is ours else size
                    self.tell(f"S6 {pair.peer.name}")
                    used = self._measure(
                        "S6",
                        pair,
                        rounds,
                        lambda p=pair, n=events, x=last: p.server.command("spread", n, 16, x),  # type: ignore[misc]
                    )
                    if run >= 0:
                        self.results.add(
                            "S6", what, pair.peer.name, "CPU µs per event", used / events
                        )
        self.results.compare(
            "S6",
            "CPU per event to one client each, over writing the ready frame to one transport",
            (what, OURS.name),
            (what, RAW.name),
            2.0,
        )

    # --- S7: overload ----------------------------------------------------------------------------

    def overload(self) -> None:
        seconds = self.settings.flood_seconds
        with ExitStack() as stack:
            pairs = {
                peer: stack.enter_context(Pair(peer, self.settings.connections))
                for peer in (OURS, WEBSOCKETS)
            }
            # What one system call per message can do, then thirty times that for both.
            capacity = self._flood(pairs[WEBSOCKETS], 1e6, 1.0)["rate"]
            rate = max(30.0, 30 * capacity / pairs[WEBSOCKETS].connections)
            what = f"{rate:.0f} events/s offered for {seconds:g} s"
            for run in range(self.settings.runs):
                for pair in _turned(tuple(pairs.values()), run):
                    self.tell(f"S7 {pair.peer.name}")
                    found = self._flood(pair, rate, seconds)
                    add, name = self.results.add, pair.peer.name
                    add("S7", what, name, "deliveries per second", found["rate"])
                    for key, label in (("age_p50", "median"), ("age_p99", "p99")):
                        add("S7", f"{label} latency", name, "ms", found[key] / 1e6)
                    self._note_reading("S7", pair.peer, found)
        self.results.compare(
            "S7",
            f"deliveries per second under overload, over those of {WEBSOCKETS.name}",
            (what, OURS.name),
            (what, WEBSOCKETS.name),
            25.0,
            at_least=True,
        )

    def _flood(self, pair: Pair, rate: float, seconds: float) -> dict[str, Any]:
        pair.reader.ask("mark", nap=0)
        sent = pair.server.command("flood", rate, seconds)["sent"]
        found = pair.reader.ask("wait", frames=sent, timeout=60)
        if not found["complete"]:
            raise RuntimeError(f"S7 {pair.peer.name}: {sent} events, but {found}")
        return found | {"rate": sent * pair.connections / found["span"]}

    # --- S8: resume ------------------------------------------------------------------------------

    def resume(self) -> None:
        retained = self.settings.retained
        first, whole = "to the first event frame", f"to the last of {retained} frames"
        with ExitStack() as stack:
            ours = stack.enter_context(Pair(OURS, 1))
            raw = stack.enter_context(Pair(RAW, 1))
            position = ours.server.command("position")["position"]
            ours.server.command("retain", retained)
            resume = f"/ws/monitor/resuming?resume={position}"
            size = _resume(ours.server.port, resume, retained)["size"]
            raw.server.command("retain", retained, size)
            for run in range(-1, self.settings.runs):
                for pair, path in _turned(((ours, resume), (raw, "/backlog")), run):
                    self.tell(f"S8 {pair.peer.name}")
                    found = _resume(pair.server.port, path, retained)
                    if run >= 0:
                        for what, key in ((first, "first"), (whole, "last")):
                            self.results.add(
                                "S8", f"time {what}", pair.peer.name, "ms", found[key] * 1e3
                            )
        self.results.compare(
            "S8",
            f"time {first} of a resume, over joining and writing those frames",
            (f"time {first}", OURS.name),
            (f"time {first}", RAW.name),
            3.0,
        )

    # --- inside ----------------------------------------------------------------------------------

    def _bursts(self, sixteen: str, one: str, wanted: set[str], peers: Sequence[Peer]) -> None:
        kinds = [
            (scenario, what, per_turn)
            for scenario, what, per_turn in ((sixteen, SIXTEEN, 16), (one, ONE, 1))
            if scenario in wanted
        ]
        with ExitStack() as stack:
            pairs = []
            for peer in peers:
                self.tell(f"{peer.name}: connecting")
                pairs.append(stack.enter_context(Pair(peer, self.settings.connections)))
            turns: dict[tuple[str, int], int] = {}
            for run in range(-1, self.settings.runs):
                for scenario, what, per_turn in kinds:
                    for pair in _turned(pairs, run):
                        self.tell(f"{scenario} {what}: {pair.peer.name}")
                        key = (pair.peer.name, per_turn)
                        events = turns.get(key, 2) * per_turn
                        used = self._measure(
                            scenario,
                            pair,
                            events,
                            lambda p=pair, e=events, n=per_turn: p.server.command("burst", e, n),  # type: ignore[misc]
                        )
                        if run < 0:
                            # The first round warms up, and says how much to do in the others.
                            share = self.settings.seconds * 1e6 / used
                            turns[key] = max(2, min(200, int(2 * share)))
                            continue
                        note = (
                            f"{pair.connections} connections"
                            if pair.connections < self.settings.connections
                            else ""
                        )
                        each = used / events / pair.connections
                        self.results.add(scenario, what, pair.peer.name, CPU, each, note)

    def _measure(
        self, scenario: str, pair: Pair, frames_each: int, work: Callable[[], dict[str, Any]]
    ) -> float:
        """Return the CPU µs the server used until every connection had every frame."""
        pair.reader.ask("mark", nap=0.001)
        began = pair.server.cpu_ns()
        answer = work()
        found = pair.reader.ask("wait", frames=frames_each, timeout=60)
        used: int = answer.get("cpu_ns", pair.server.cpu_ns() - began)
        if not found["complete"] or found["frames"] != frames_each or found["closed"]:
            raise RuntimeError(f"{scenario} {pair.peer.name}: {frames_each} frames, but {found}")
        self._note_reading(scenario, pair.peer, found)
        return used / 1000

    def _note_reading(self, scenario: str, peer: Peer, found: dict[str, Any]) -> None:
        self.results.readings.append(
            Reading(
                scenario=scenario,
                who=peer.name,
                cpu_share=found["cpu_share"],
                idle_share=found["idle_share"],
            )
        )


def _turned(things: Sequence[Any], run: int) -> list[Any]:
    """Return the things beginning with another one in each run, so that no order is favoured."""
    at = run % len(things)
    return [*things[at:], *things[:at]]


def _resume(port: int, path: str, count: int) -> dict[str, Any]:
    """Connect, and time the first event frame and the last one."""
    sock = socket.create_connection(("127.0.0.1", port))
    with sock:
        began = time.perf_counter()
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        first = 0.0
        data = bytearray()
        seen = searched = 0
        mark = b'"update_job_progress"'
        while seen < count or data[-1:] != b"}":
            if not select.select([sock], [], [], 30)[0]:
                raise RuntimeError(f"S8: {seen} of {count} frames came")
            data += sock.recv(1 << 20)
            found = data.count(mark, searched)
            if found:
                seen += found
                searched = data.rindex(mark) + len(mark)
                first = first or time.perf_counter()
        last = time.perf_counter()
        begin = data.index(mark) - len('{"type":')
        # Frames of this size have headers of four bytes; the first one's is not counted in `data`.
    size = (len(data) - begin + 4) // count - 4
    return {"first": first - began, "last": last - began, "size": size}
