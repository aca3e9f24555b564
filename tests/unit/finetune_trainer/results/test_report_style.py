"""The report's colours have enough contrast in light mode, in dark mode and on paper (WCAG 2.2, AA)."""

import re
from pathlib import Path

import pytest

from finetune_trainer.results import pages

CSS = (Path(pages.__file__).parent / "templates" / "report.css").read_text()
TEXT = ("ink", "soft", "better", "worse", "noise", "accent")
SURFACES = ("paper", "panel")


def palettes() -> dict[str, dict[str, str]]:
    """Returns the custom properties of each :root, by medium."""
    blocks = [
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{3,6});", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S)
    ]
    return dict(zip(("light", "dark", "print"), blocks, strict=True))


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("medium", ["light", "dark", "print"])
def test_all_text_has_enough_contrast(medium: str) -> None:
    colours = palettes()[medium]
    pairs = [(text, surface) for text in TEXT for surface in SURFACES] + [("ink", "wrong")]
    faint = {pair: round(contrast(*(colours[name] for name in pair)), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in faint.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("medium", ["light", "dark", "print"])
def test_lines_of_a_chart_have_enough_contrast(medium: str) -> None:
    colours = palettes()[medium]
    assert all(contrast(colours[line], colours["paper"]) >= 3 for line in ("accent", "second"))


def test_every_colour_is_defined_for_dark_mode_and_paper() -> None:
    light, dark, printed = palettes().values()
    assert light.keys() == dark.keys() == printed.keys()
    assert set(re.findall(r"var\(--([a-z]+)", CSS)) <= light.keys() | {"tone"}
