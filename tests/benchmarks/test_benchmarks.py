"""The benchmarks run, and count every frame; how fast anything is, is not asserted."""

import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import __main__ as program
from benchmarks import frames, report
from benchmarks.programs import ALWAYS, OURS, OURS_DEFLATE, RAW, WEBSOCKETS, Pair, Peer
from benchmarks.results import Figure, Goal, Results
from benchmarks.scenarios import Settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the reader uses epoll, and /proc")

CONNECTIONS = 50
SMALL = Settings(
    connections=CONNECTIONS, runs=1, seconds=0.02, flood_seconds=0.2, retained=200, core=200,
    others=False,
)  # fmt: skip


@pytest.mark.parametrize("peer", [*ALWAYS, OURS_DEFLATE], ids=lambda peer: peer.name)
def test_every_frame_reaches_every_connection(peer: Peer) -> None:
    with Pair(peer, CONNECTIONS) as pair:
        pair.reader.ask("mark")
        pair.server.command("burst", 64, 16)
        found = pair.reader.ask("wait", frames=64, timeout=20)
    assert found["complete"]
    assert found["frames"] == 64
    assert found["closed"] == 0
    assert found["least"] == found["most"] == found["sample_bytes"]
    if not peer.deflate:
        assert found["bytes"] == 64 * CONNECTIONS * (2 + frames.SIZE)


def test_a_missing_frame_shows() -> None:
    with Pair(RAW, CONNECTIONS) as pair:
        pair.reader.ask("mark")
        pair.server.command("burst", 4, 1)
        pair.server.command("spread", 1, 1, frames.SIZE)
        found = pair.reader.ask("wait", frames=4, timeout=1)
    assert not found["complete"]


def test_a_scenario_runs_and_is_reported() -> None:
    results = Results(machine={"Python": "3"}, settings={"connections": CONNECTIONS})
    program.measure(SMALL, {"S1", "S8"}, results)

    assert {figure.scenario for figure in results.figures} == {"S1", "S8"}
    assert all(value > 0 for figure in results.figures for value in figure.values)
    assert "Goals" in report.text(results)


@pytest.mark.soak
def test_every_scenario_runs() -> None:
    results = Results(machine={"Python": "3"}, settings={"connections": CONNECTIONS})
    program.measure(SMALL, set(program.ALL), results)

    assert {figure.scenario for figure in results.figures} == {*program.ALL, "memory"}
    assert all(value > 0 for figure in results.figures for value in figure.values)
    assert {goal.scenario for goal in results.goals} == set(program.ALL)
    for peer in (OURS, WEBSOCKETS):
        assert results.figure("S1", "16 events per turn", peer.name)
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results
    assert "Goals" in report.text(results)


def test_frames_are_of_one_size_and_know_their_age() -> None:
    assert {len(frames.payload(number)) for number in (1, 999, 10**9)} == {frames.SIZE}
    assert frames.made_at(frames.payload(1, 42).encode()) == 42
    assert frames.made_at(b"{}") is None


def figure(who: str, *values: float) -> Figure:
    return Figure(scenario="S1", what="16 events per turn", who=who, unit="µs", values=[*values])


def test_ratios_are_of_the_same_run() -> None:
    results = Results(figures=[figure("a", 1, 20), figure("b", 10, 100)])
    what = "16 events per turn"
    results.compare("S1", "a over b", (what, "a"), (what, "b"), 0.2)
    results.compare("S1", "a over nobody", (what, "a"), (what, "c"), 0.2)
    assert results.goals == [
        Goal(scenario="S1", text="a over b", reached=[0.1, 0.2], limit=0.2),
    ]
    assert results.goals[0].met


def test_docs_are_written_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("above\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nbelow\n")
    results = Results(figures=[figure("jobqueue-broadcast", 1, 3, 2)], absent={"x": "not there"})
    report.write_docs(results, page)
    written = page.read_text()
    assert written.startswith("above\n")
    assert written.endswith("below\n")
    assert "old" not in written
    assert "| 16 events per turn | jobqueue-broadcast | µs | 2 | 1–3 |" in written
    assert "Not measured: x: not there." in written
    assert page.with_suffix(".svg").read_text().startswith("<svg")


def test_two_runs_side_by_side() -> None:
    before = Results(figures=[figure("a", 1, 2, 3), figure("b", 1, 1, 1)])
    after = Results(figures=[figure("a", 2, 3, 4), figure("b", 2, 2, 2)])
    lines = report.comparison(before, after).splitlines()
    assert lines[1].endswith("~")
    assert lines[2].endswith("+100%")
