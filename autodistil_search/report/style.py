"""Colours, markers and dashes of all figures, shared by matplotlib (papers, PNG) and plotly (page, notebooks)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Marker(NamedTuple):
    """Marker by its names in matplotlib and plotly."""

    matplotlib: str
    plotly: str


class Dash(NamedTuple):
    """Dash pattern of a line by its names in matplotlib and plotly."""

    matplotlib: Any
    plotly: str


LIGHT: Mapping[str, str] = {
    "ink": "#1b1f24",
    "quiet": "#4c555f",
    "paper": "#ffffff",
    "line": "#d0d7de",
    "soft": "#f3f5f7",
    "accent": "#0b5cad",
    "c0": "#0072b2",
    "c1": "#009e73",
    "c2": "#b9588f",
    "c3": "#2f8fc4",
    "c4": "#b87a00",
    "baseline": "#d55e00",
}
"""Colours by role on white. The series `c0` to `c4` follow the palette of Okabe and Ito, which colour-blind readers can
distinguish; the paler ones are darkened for a contrast of 3:1. Figures of matplotlib use these colours."""

DARK: Mapping[str, str] = {
    "ink": "#e6edf3",
    "quiet": "#a9b4bf",
    "paper": "#14181d",
    "line": "#3a434d",
    "soft": "#1f252c",
    "accent": "#7ab8ff",
    "c0": "#4aa8e0",
    "c1": "#1fc797",
    "c2": "#dd95bf",
    "c3": "#8fd0f5",
    "c4": "#e69f00",
    "baseline": "#ff8a3d",
}
"""Counterparts of `LIGHT` on a dark page."""

SERIES_COLOURS = tuple(name for name in LIGHT if name[0] == "c" and name[1:].isdigit())
SERIES_MARKERS = (
    Marker("o", "circle"),
    Marker("<", "triangle-left"),
    Marker(">", "triangle-right"),
    Marker("p", "pentagon"),
)
BASELINE_MARKERS = (
    Marker("s", "square"),
    Marker("D", "diamond"),
    Marker("^", "triangle-up"),
    Marker("v", "triangle-down"),
    Marker("P", "cross"),
    Marker("X", "x"),
    Marker("h", "hexagon"),
    Marker("8", "octagon"),
)
KNEE_MARKER = Marker("*", "star")
"""Marker of the knee alone."""
TEACHER_MARKER = Marker("H", "hexagon2")
"""Marker of a teacher where it is a point. In the frontier figure, the teacher is a line."""
DASHES = (Dash("-", "solid"), Dash((0, (7, 3)), "dash"), Dash((0, (2, 2)), "dot"), Dash((0, (9, 3, 2, 3)), "dashdot"))
PART_DASH = Dash(":", "dot")
"""Dash pattern of the frontier of a single space."""
TEACHER_DASH = DASHES[3]
SIZE_SCALE = [[0, "#1f77c8"], [0.5, "#8c7f93"], [1, "#c27a00"]]
"""Colour scale of sizes, from the smallest to the largest. All its colours can be seen on white and on a dark page."""


def series_colour(series: int | None) -> str:
    """Return the name of a series' colour, or that of text for None."""
    return "ink" if series is None else SERIES_COLOURS[series % len(SERIES_COLOURS)]


def series_marker(series: int) -> Marker:
    """Return the marker of a series."""
    return SERIES_MARKERS[series % len(SERIES_MARKERS)]


def baseline_marker(number: int) -> Marker:
    """Return the marker of a baseline."""
    return BASELINE_MARKERS[number % len(BASELINE_MARKERS)]
