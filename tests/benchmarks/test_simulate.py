"""The simulation that the page on scaling takes its tables from."""

from pathlib import Path

import pytest

from benchmarks import simulate
from benchmarks.simulate import Load


def play(**load: float) -> simulate.Outcome:
    given = {"events": 1_000, "mine": 0.1, "monitors": 10, **load}
    return simulate.simulate(Load(**given), events=2_000)  # type: ignore[arg-type]


def test_an_idle_node_delivers_at_the_cost_of_one_event() -> None:
    outcome = play(events=1, mine=0, monitors=0)
    assert outcome.p50 == pytest.approx(simulate.THROUGH_REDIS / 1e6)
    assert outcome.busy < 0.001


def test_more_of_anything_is_slower() -> None:
    base = play()
    for more in ({"events": 10_000}, {"monitors": 1_000}, {"event": 500}):
        assert play(**more).p99 > base.p99


def test_what_a_node_bears_depends_on_who_listens() -> None:
    few, many = simulate.most(0.1, 10), simulate.most(0.1, 2_000)
    assert many < few < 1e6 / simulate.THROUGH_REDIS


def test_the_page_holds_the_present_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulate.constants() in simulate.PAGE.read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    monkeypatch.setattr(simulate, "TABLES", {"one": lambda: "new"})
    page.write_text("a\n<!-- simulate one: begin -->\nold\n<!-- simulate one: end -->\nb\n")
    simulate.write_docs(page)
    assert page.read_text() == (
        "a\n<!-- simulate one: begin -->\n\nnew\n\n<!-- simulate one: end -->\nb\n"
    )
