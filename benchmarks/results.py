"""What a run of the benchmarks found: figures, goals, and proof that the readers kept up."""

from __future__ import annotations

import statistics
from typing import Any

from msgspec import Struct, field


class Figure(Struct, kw_only=True):
    """One measured quantity, once per run.

    Args:
        scenario: S1 to S8, or `memory`.
        what: What was done.
        who: Who did it.
        unit: Of the values.
        values: One per run.
        note: What a reader must know of it.
    """

    scenario: str
    what: str
    who: str
    unit: str
    values: list[float]
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)


class Goal(Struct, kw_only=True):
    """What was to be reached, and what was.

    Args:
        scenario: S1 to S8.
        text: The goal in words.
        reached: In the unit of the limit, once per run.
        limit: The bound.
        at_least: Whether the bound is a lower one.
    """

    scenario: str
    text: str
    reached: list[float]
    limit: float
    at_least: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.reached)

    @property
    def met(self) -> bool:
        return self.median >= self.limit if self.at_least else self.median <= self.limit


class Reading(Struct, kw_only=True):
    """How busy the reading process was during one measurement.

    Args:
        scenario: S1 to S8.
        who: Whose frames were read.
        cpu_share: Its CPU time over the time that passed.
        idle_share: The share of the time in which it waited for frames.
    """

    scenario: str
    who: str
    cpu_share: float
    idle_share: float


class Results(Struct, kw_only=True):
    """One run of the program."""

    machine: dict[str, str] = field(default_factory=dict[str, str])
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    figures: list[Figure] = field(default_factory=list[Figure])
    goals: list[Goal] = field(default_factory=list[Goal])
    readings: list[Reading] = field(default_factory=list[Reading])
    absent: dict[str, str] = field(default_factory=dict[str, str])

    def figure(self, scenario: str, what: str, who: str) -> Figure | None:
        """Return a figure, if it was measured."""
        for figure in self.figures:
            if (figure.scenario, figure.what, figure.who) == (scenario, what, who):
                return figure
        return None

    def add(
        self, scenario: str, what: str, who: str, unit: str, value: float, note: str = ""
    ) -> None:
        """Add the value of one run."""
        figure = self.figure(scenario, what, who)
        if figure is None:
            figure = Figure(scenario=scenario, what=what, who=who, unit=unit, values=[], note=note)
            self.figures.append(figure)
        figure.values.append(value)

    def compare(
        self,
        scenario: str,
        text: str,
        of: tuple[str, str],
        to: tuple[str, str],
        limit: float,
        *,
        at_least: bool = False,
    ) -> None:
        """Hold the ratio of two figures, run by run, against a goal.

        Args:
            scenario: S1 to S8.
            text: The goal in words.
            of: What and who is held against it.
            to: What and who it is compared with; without that figure there is no goal.
            limit: The bound of the ratio.
            at_least: Whether the bound is a lower one.
        """
        ours, theirs = self.figure(scenario, *of), self.figure(scenario, *to)
        if ours is None or theirs is None:
            return
        ratios = [a / b for a, b in zip(ours.values, theirs.values, strict=False)]
        self.goals.append(
            Goal(scenario=scenario, text=text, reached=ratios, limit=limit, at_least=at_least)
        )
