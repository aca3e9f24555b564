"""Figures, the file that stores them, and the gate that compares them with recorded ones. Pure, except for the file."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

TOLERANCE = 0.2
"""Part of the recorded value by which a gated figure may be worse."""


class Better(StrEnum):
    """The direction in which a figure improves."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    what: str
    value: float
    unit: str
    wanted: float | None = None
    """The goal. None if there is none."""
    better: Better = Better.LOWER
    gated: bool = False
    """Whether the gate compares this figure. Only ratios and counts are gated: they depend little on the machine."""
    more: dict[str, Any] | None = None
    """More data for the file, for example requests by verb and resource."""

    @property
    def is_met(self) -> bool | None:
        """Whether the value reaches the goal; None if there is no goal."""
        if self.wanted is None:
            return None
        return self.value >= self.wanted if self.better is Better.HIGHER else self.value <= self.wanted

    def __str__(self) -> str:
        goal = ""
        if self.wanted is not None:
            bound = "at least" if self.better is Better.HIGHER else "at most"
            goal = f"  (wanted: {bound} {shown(self.wanted)} {self.unit}){'' if self.is_met else '  MISSED'}"
        return f"  {self.what}: {shown(self.value)} {self.unit}{goal}"


def shown(value: float) -> str:
    """Returns the number for people, with three or more digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest value that is not exceeded by `percent` of the values (nearest rank). Raises ValueError if
    there are no values or `percent` is not above 0 and at most 100."""
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(values)} values")
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


class Record:
    """The JSON file with all figures by case. It is complete after each figure. Without a path it stores nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {"machine": {}, "cases": {}}

    def note(self, **facts: Any) -> None:
        """Stores facts about the machine."""
        self.content["machine"] |= facts
        self._save()

    def add(self, case: str, figure: Figure) -> None:
        """Prints and stores a figure of `case`."""
        print(figure, flush=True)
        self.content["cases"].setdefault(case, []).append(asdict(figure))
        self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        draft = self._path.with_suffix(".part")  # A process that is killed while it writes leaves the old file.
        draft.write_text(json.dumps(self.content, indent=1) + "\n")
        draft.replace(self._path)


def worse(cases: dict[str, list[dict[str, Any]]], recorded: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns a sentence for each gated figure that is worse than the recorded one by more than `TOLERANCE`.

    Both arguments have the form of `cases` in the file. Figures that only one of them has are not compared."""
    sentences = []
    for case, figures in cases.items():
        before = {figure["what"]: figure for figure in recorded.get(case, []) if figure["gated"]}
        for figure in figures:
            if figure["what"] in before and _is_worse(figure["value"], before[figure["what"]]):
                was = before[figure["what"]]["value"]
                sentences.append(
                    f"{case}: {figure['what']} is {shown(figure['value'])} {figure['unit']}, recorded {shown(was)}."
                )
    return sentences


def _is_worse(value: float, recorded: dict[str, Any]) -> bool:
    if recorded["better"] == Better.HIGHER:
        return bool(value < recorded["value"] * (1 - TOLERANCE))
    return bool(value > recorded["value"] * (1 + TOLERANCE))
