"""How results are shown: tables in plain text and Markdown, a plot, and two runs side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

from benchmarks.results import Figure, Goal, Results

TITLES = {
    "S1": "16 events per turn to every monitor",
    "S2": "1 event per turn to every monitor",
    "S3": "with permessage-deflate",
    "S4": "memory per idle connection",
    "S5": "broadcast of a job event, core only",
    "S6": "events to one client each",
    "S7": "sustained overload",
    "S8": "resume over retained events",
    "REDIS": "through Redis to one node",
    "memory": "memory of what the core keeps",
}
_BEGIN = "<!-- benchmarks: begin -->"
_END = "<!-- benchmarks: end -->"


def number(value: float) -> str:
    """Return a figure with three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _spread(values: list[float], median: float) -> list[str]:
    return [number(median), f"{number(min(values))}–{number(max(values))}"]


def figure_rows(results: Results, scenario: str) -> list[list[str]]:
    """Return the figures of a scenario: what, who, unit, median, spread."""
    rows = []
    for figure in results.figures:
        if figure.scenario == scenario:
            who = f"{figure.who} ({figure.note})" if figure.note else figure.who
            cells = _spread(figure.values, figure.median)
            rows.append([figure.what, who, figure.unit, *cells])
    return rows


def goal_rows(results: Results) -> list[list[str]]:
    """Return the goals: number, text, median, spread, bound, and whether it was met."""
    return [
        [
            goal.scenario,
            goal.text,
            _ratio(goal.median),
            f"{number(min(goal.reached))}–{number(max(goal.reached))}",
            f"{'≥' if goal.at_least else '≤'} {_ratio(goal.limit)}",
            "met" if goal.met else "missed",
        ]
        for goal in results.goals
    ]


def _ratio(value: float) -> str:
    """Return a ratio, a small one also as a fraction of one."""
    return f"{number(value)} (1/{1 / value:.3g})" if 0 < value < 0.5 else number(value)


def reading_rows(results: Results) -> list[list[str]]:
    """Return, per scenario, how busy the busiest reader was."""
    rows = []
    for scenario in dict.fromkeys(reading.scenario for reading in results.readings):
        busiest = min(
            (each for each in results.readings if each.scenario == scenario),
            key=lambda each: each.idle_share,
        )
        rows.append(
            [scenario, busiest.who, f"{busiest.cpu_share:.0%}", f"{busiest.idle_share:.0%}"]
        )
    return rows


_FIGURES = ["what", "who", "unit", "median", "min–max"]
_GOALS = ["", "goal", "median", "min–max", "bound", ""]
_READINGS = ["", "busiest reader's server", "reader's CPU", "reader idle"]


def text(results: Results) -> str:
    """Return everything as plain text."""
    parts = []
    for scenario, title in TITLES.items():
        if rows := figure_rows(results, scenario):
            parts.append(f"{scenario}: {title}\n" + _aligned(_FIGURES, rows))
    if rows := goal_rows(results):
        parts.append("Goals\n" + _aligned(_GOALS, rows))
    if rows := reading_rows(results):
        parts.append("Readers (the least idle one of each)\n" + _aligned(_READINGS, rows))
    for name, lack in results.absent.items():
        parts.append(f"Not measured: {name}: {lack}")
    return "\n\n".join(parts)


def markdown(results: Results) -> str:
    """Return everything as Markdown."""
    parts = [
        "Measured with "
        + ", ".join(f"{name} {value}" for name, value in results.machine.items())
        + "; "
        + ", ".join(f"{name} {value}" for name, value in results.settings.items())
        + ".",
        "### Goals\n\n" + _table(_GOALS, goal_rows(results)),
        "### Figures",
    ]
    for scenario, title in TITLES.items():
        if rows := figure_rows(results, scenario):
            parts.append(f"**{scenario}: {title}**\n\n" + _table(_FIGURES, rows))
    parts.append(
        "### Readers\n\nThe least idle reader of each scenario: its CPU time, and the share of the "
        "time in which it waited.\n\n" + _table(_READINGS, reading_rows(results))
    )
    if results.absent:
        lacking = "; ".join(f"{name}: {lack}" for name, lack in results.absent.items())
        parts.append(f"Not measured: {lacking}.")
    return "\n\n".join(parts)


def comparison(before: Results, after: Results) -> str:
    """Return two runs side by side."""
    rows = []
    for figure in after.figures:
        old = before.figure(figure.scenario, figure.what, figure.who)
        if old is not None:
            rows.append(
                [
                    figure.scenario,
                    figure.what,
                    figure.who,
                    figure.unit,
                    number(old.median),
                    number(figure.median),
                    _change(old, figure),
                ]
            )
    figures = _aligned(["", "what", "who", "unit", "before", "after", "change"], rows)
    known = {(goal.scenario, goal.text): goal for goal in before.goals}
    goals = [
        [goal.scenario, goal.text, number(was.median), number(goal.median), _met(was, goal)]
        for goal in after.goals
        if (was := known.get((goal.scenario, goal.text)))
    ]
    return figures + "\n\n" + _aligned(["", "goal", "before", "after", ""], goals)


def _change(old: Figure, new: Figure) -> str:
    """Return the change, or `~` when it is within the spread of either run."""
    if new.least <= old.most and old.least <= new.most:
        return "~"
    return f"{new.median / old.median - 1:+.0%}" if old.median else ""


def _met(old: Goal, new: Goal) -> str:
    words = ["met" if goal.met else "missed" for goal in (old, new)]
    return words[1] if words[0] == words[1] else " → ".join(words)


def write_docs(results: Results, page: Path) -> None:
    """Replace what stands between the markers of a page, and the plot beside it."""
    before, found, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, found_too, after = rest.partition(_END)
    if not found or not found_too:
        raise SystemExit(f"{page}: expected {_BEGIN} and {_END}")
    plot = page.with_suffix(".svg")
    plot.write_text(svg(results), encoding="utf-8")
    shown = f"![CPU per delivered message]({plot.name})\n\n{markdown(results)}"
    page.write_text(f"{before}{_BEGIN}\n\n{shown}\n\n{_END}{after}", encoding="utf-8")


# --- drawing -------------------------------------------------------------------------------------

_WIDTH, _LEFT, _BAR, _GAP = 860, 290, 18, 6
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#444}"
    ".title{font-weight:600}.bar{fill:#9db4c8}.ours{fill:#2a7ab8}.spread{stroke:#444}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}.spread{stroke:#ccc}}"
)


def svg(results: Results) -> str:
    """Draw CPU per delivered message: a bar per program, its spread as a line."""
    parts: list[str] = []
    y = 10
    for scenario in ("S1", "S2", "S3"):
        groups: dict[str, list[Figure]] = {}
        for figure in results.figures:
            if figure.scenario == scenario:
                groups.setdefault(figure.what, []).append(figure)
        for what, figures in groups.items():
            y = _draw_group(parts, f"{scenario}: {what}, {figures[0].unit}", figures, y)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img">\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _draw_group(parts: list[str], title: str, figures: list[Figure], y: int) -> int:
    parts.append(f'<text class="title" x="0" y="{y + 14}">{escape(title)}</text>')
    y += 24
    scale = (_WIDTH - _LEFT - 70) / max(figure.most for figure in figures)
    for figure in sorted(figures, key=lambda figure: figure.median):
        kind = "bar ours" if figure.who.startswith("jobqueue") else "bar"
        middle = y + _BAR / 2
        parts += [
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(figure.who)}</text>',
            (
                f'<rect class="{kind}" x="{_LEFT}" y="{y}" height="{_BAR}" '
                f'width="{figure.median * scale:.1f}"/>'
            ),
            (
                f'<line class="spread" y1="{middle}" y2="{middle}" '
                f'x1="{_LEFT + figure.least * scale:.1f}" x2="{_LEFT + figure.most * scale:.1f}"/>'
            ),
            (
                f'<text x="{_LEFT + figure.most * scale + 6:.1f}" y="{y + 14}">'
                f"{number(figure.median)}</text>"
            ),
        ]
        y += _BAR + _GAP
    return y + 16


# --- tables --------------------------------------------------------------------------------------


def _aligned(head: list[str], rows: Iterable[list[str]]) -> str:
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        re.sub(r"\s+$", "", "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)))
        for row in table
    )


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
