"""Figures of the page as inline SVG in the colours of the page, from the same views as the figures of matplotlib.

The scored subnets of a series are one path in the order of its rows, which keeps thousands of them small. The page's
script reads their positions from the path. Each point of the frontier is a separate element, which can be focused.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from autodistil_search.nas.objectives import Objective
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.run_parts import Curve, ProxyCheck
from autodistil_search.report.views import (
    Line,
    axis_label,
    baseline_points,
    better,
    is_wide,
    of_runs,
    parallel_ends,
    parallel_rows,
    run_numbers,
    series_numbers,
    shown,
    step_lines,
    subnet_words,
    tick_label,
    ticks,
    value_words,
)

_WIDTH, _HEIGHT = 460, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 10, 26
_PADDING = 0.04
"""Share of an axis that is left free beyond the outermost points."""

_SHAPES = (
    "m-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",  # circle
    "m-3.4 0 6-3.6v7.2z",  # triangle to the left
    "m3.4 0-6-3.6v7.2z",  # triangle to the right
    "m0-3.6 3.4 2.5-1.3 4h-4.2l-1.3-4z",  # pentagon
)
"""Markers of series, as paths relative to their centre."""
_BASELINE_SHAPES = (
    "m-4.5-4.5h9v9h-9z",
    "m0-6 6 6-6 6-6-6z",
    "m0-5.5 5.5 10h-11z",
    "m0 5.5 5.5-10h-11z",
    "m-1.8-5.4h3.6v3.6h3.6v3.6h-3.6v3.6h-3.6v-3.6h-3.6v-3.6h3.6z",
    "m-4.6-2 2.6-2.6 2 2 2-2 2.6 2.6-2 2 2 2-2.6 2.6-2-2-2 2-2.6-2.6 2-2z",
    "m-5.5 0 10-5.5v11z",
    "m5.5 0-10-5.5v11z",
    "m0-5.5 5.2 3.8-2 6.1h-6.4l-2-6.1z",
    "m-2.8-5h5.6l2.8 5-2.8 5h-5.6l-2.8-5z",
)
_STAR = "m0-9 2.2 6.1 6.4.2-5.1 3.9 1.8 6.2-5.3-3.6-5.3 3.6 1.8-6.2-5.1-3.9 6.4-.2z"
COLOURS = 5
"""Number of the classes `c0` to `c4`, whose colours the page's style defines."""
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


def colour_class(series: int | None) -> str:
    """Return the CSS class of a series' colour, or that of text for None."""
    return "ink" if series is None else f"c{series % COLOURS}"


@dataclass(frozen=True)
class Axis:
    """Axis that maps values to coordinates between two edges of the figure."""

    low: float
    high: float
    wide: bool
    edges: tuple[float, float]

    @classmethod
    def around(cls, values: Sequence[float], wide: bool, edges: tuple[float, float]) -> Axis:
        """Return an axis for `values`, with some room beyond the outermost."""
        turn: Callable[[float], float] = math.log if wide else float
        low, high = turn(min(values)), turn(max(values))
        room = _PADDING * (high - low) or abs(high) * _PADDING or 1.0
        low, high = low - room, high + room
        return cls(*((math.exp(low), math.exp(high)) if wide else (low, high)), wide, edges)

    def place(self, value: float) -> float:
        """Return the coordinate of a value."""
        turn: Callable[[float], float] = math.log if self.wide else float
        share = (turn(value) - turn(self.low)) / (turn(self.high) - turn(self.low))
        return self.edges[0] + share * (self.edges[1] - self.edges[0])


def _number(value: float) -> str:
    """Return a coordinate as text, rounded to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _plane(xs: Sequence[float], ys: Sequence[float], wide_x: bool, wide_y: bool) -> tuple[Axis, Axis, Markup]:
    """Return both axes, and their grid and ticks as SVG."""
    x = Axis.around(xs, wide_x, (_LEFT, _WIDTH - _RIGHT))
    y = Axis.around(ys, wide_y, (_HEIGHT - _BOTTOM, _TOP))
    parts = [
        f'<path class="grid" d="M{_number(x.place(tick))} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        f'<text x="{_number(x.place(tick))}" y="{_HEIGHT - 8}" text-anchor="middle">{tick_label(tick)}</text>'
        for tick in ticks(x.low, x.high, wide_x)
    ]
    parts += [
        f'<path class="grid" d="M{_LEFT} {_number(y.place(tick))}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 5}" y="{_number(y.place(tick) + 4)}" text-anchor="end">{tick_label(tick)}</text>'
        for tick in ticks(y.low, y.high, wide_y)
    ]
    frame = f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>'
    return x, y, Markup("".join(parts) + frame)


def _figure(content: Markup, words: str, across: str, up: str, css: str = "") -> Markup:
    """Return a figure whose axis labels are text of the page, so that they wrap."""
    return Markup(
        '<figure class="plot"><p>{}</p><svg viewBox="0 0 {} {}" role="group" aria-label="{}" class="{}">{}</svg>'
        '<p class="below">{}</p></figure>'
    ).format(up, _WIDTH, _HEIGHT, words, css, content, across)


def _step(line: Line, x: Axis, y: Axis) -> str:
    """Return the path of a step line."""
    points = [(x.place(line.x[0]), y.place(line.y[0]))]
    for across, up in itertools.islice(zip(line.x, line.y, strict=True), 1, None):
        corner = (x.place(across), points[-1][1]) if line.where == "post" else (points[-1][0], y.place(up))
        points += [corner, (x.place(across), y.place(up))]
    return _path(points)


def frontier_panel(
    report: ParetoReport, x: Objective, y: Objective, drawn: Sequence[tuple[int, pd.DataFrame]], labels: Sequence[str]
) -> Markup:
    """Return the panel of `y` against `x` with scored subnets, step lines, frontier, knee and baselines.

    drawn: scored subnets by the number of their series. labels: label of each row of the frontier.
    """
    baselines = baseline_points(report, x, y)
    xs = [*report.evaluations[x.name], *report.frontier[x.name], *(baseline.x for baseline in baselines)]
    ys = [*report.evaluations[y.name], *report.frontier[y.name], *(baseline.y for baseline in baselines)]
    across, up, plane = _plane(xs, ys, is_wide(x, xs), is_wide(y, ys))
    parts, first = [plane], 0
    for number, rows in drawn:
        shape = _SHAPES[number % len(_SHAPES)]
        d = "".join(
            f"M{_number(across.place(a))} {_number(up.place(b))}{shape}"
            for a, b in zip(rows[x.name], rows[y.name], strict=True)
        )
        parts.append(Markup('<path class="scored {}" data-first="{}" d="{}"/>').format(colour_class(number), first, d))
        first += len(rows)
    runs = itertools.count()
    for line in step_lines(report, x, y):
        dash = _DASHES[next(runs) % len(_DASHES)] if line.whole else "2 3"
        css = f"step {colour_class(line.series)}{'' if line.whole else ' own'}"
        parts.append(
            Markup('<path class="{}" stroke-dasharray="{}" d="{}"/>').format(
                css, dash or "none", _step(line, across, up)
            )
        )
    numbers = series_numbers(report, report.frontier)
    several = len(set(numbers) | {number for number, _ in drawn}) > 1
    for i, (_, row) in enumerate(report.frontier.iterrows()):
        shape = _SHAPES[numbers[i] % len(_SHAPES)]
        where = f"{_number(across.place(row[x.name]))} {_number(up.place(row[y.name]))}"
        knee = Markup('<path class="knee" d="M{}{}"/>').format(where, _STAR) if row["knee"] else ""
        parts.append(
            Markup(
                '{}<g class="best {}" data-row="{}" tabindex="{}" role="button" aria-label="{}"><path d="M{}{}"/></g>'
            ).format(knee, colour_class(numbers[i] if several else None), i, -bool(i), labels[i], where, shape)
        )
    for point in baselines:
        shape = _BASELINE_SHAPES[point.number % len(_BASELINE_SHAPES)]
        words = f"Baseline {point.name}\n{x.label}: {shown(point.x)}\n{y.label}: {shown(point.y)}"
        parts.append(
            Markup('<path class="baseline" data-tip="{}" d="M{} {}{}"><title>{}</title></path>').format(
                words, _number(across.place(point.x)), _number(up.place(point.y)), shape, words.replace("\n", ", ")
            )
        )
    words = f"{y.label} against {x.label}: the frontier as a step line, scored subnets and baselines"
    return _figure(Markup("").join(parts), words, f"{axis_label(x)} →", f"↑ {axis_label(y)}", "frontier")


def legend(entries: Sequence[Markup]) -> Markup:
    """Return a legend, whose keys wrap."""
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(map(Markup("<li>{}</li>").format, entries)))


def _key(css: str, d: str, name: str, dash: str = "") -> Markup:
    return Markup(
        '<svg viewBox="-12 -9 24 18" aria-hidden="true"><path class="{}" stroke-dasharray="{}" d="{}"/></svg>{}'
    ).format(css, dash or "none", d, name)


def frontier_legend(report: ParetoReport, x: Objective, y: Objective, names: Sequence[str]) -> Markup:
    """Return the legend of the frontier's panels. names: names of the series."""
    entries = [
        _key(f"scored {colour_class(i)}", f"M0 0{_SHAPES[i % len(_SHAPES)]}", f"scored, {name}")
        for i, name in enumerate(names)
    ]
    for i, line in enumerate(step_lines(report, x, y)):
        dash = _DASHES[i % len(_DASHES)] if line.whole else "2 3"
        css = f"step {colour_class(line.series)}{'' if line.whole else ' own'}"
        entries.append(_key(css, "M-12 0H12", line.name, dash))
    entries.append(_key("knee", f"M0 0{_STAR}", "knee, nearest to the ideal point"))
    entries += [
        _key("baseline", f"M0 0{_BASELINE_SHAPES[baseline.number % len(_BASELINE_SHAPES)]}", baseline.name)
        for baseline in baseline_points(report, x, y)
    ]
    return legend(entries)


def parallel_panel(report: ParetoReport, labels: Sequence[str]) -> Markup:
    """Return the frontier in parallel coordinates: an axis for each objective, with the best value at the bottom."""
    count = len(report.objectives)
    left, right, top, bottom = 62, _WIDTH - 62, 26, _HEIGHT - 22
    places = [left + (right - left) * i / (count - 1) for i in range(count)]
    parts = []
    for place, objective, (best, worst) in zip(places, report.objectives, parallel_ends(report), strict=True):
        parts.append(
            Markup(
                '<path class="axis" d="M{0} {1}V{2}"/><text x="{0}" y="{3}" text-anchor="middle">{4}</text>'
                '<text x="{0}" y="{5}" text-anchor="middle" class="name">{6}: {7}</text>'
            ).format(_number(place), top, bottom, bottom + 16, shown(best), top - 8, objective.name, shown(worst))
        )
    numbers = series_numbers(report, report.frontier)
    order = [*report.frontier.index[~report.frontier["knee"]], *report.frontier.index[report.frontier["knee"]]]
    scaled = parallel_rows(report)
    for i in order:
        points = [
            (place, bottom - (bottom - top) * float(share)) for place, share in zip(places, scaled[i], strict=True)
        ]
        css = f"profile {colour_class(numbers[i])}{' knee' if report.frontier['knee'][i] else ''}"
        parts.append(
            Markup('<path class="{}" data-row="{}" d="{}"><title>{}</title></path>').format(
                css, i, _path(points), labels[i]
            )
        )
    names = ", ".join(objective.label for objective in report.objectives)
    return _figure(
        Markup("").join(parts),
        f"The frontier in parallel coordinates of {names}; the table of the frontier has the numbers",
        "one line for each subnet of the frontier; thick line: knee",
        "worst of the frontier at the top of every axis, best at the bottom",
        "parallel",
    )


def progress_panel(report: ParetoReport, of_what: str) -> Markup:
    """Return the panel of the hypervolume's share against evaluations, with a step line for each run."""
    tables, numbers = of_runs(report.progress), run_numbers(report)
    ends = [0.0, max(float(table["evaluations"].iloc[-1]) for _, table in tables)]
    across, up, plane = _plane(ends, [0.0, 100.0], False, False)
    parts = [plane]
    for i, (run, table) in enumerate(tables):
        line = Line(run, table["evaluations"].tolist(), (100 * table["share"]).tolist(), "post", None, True)
        css = colour_class(numbers.get(run))
        parts.append(
            Markup('<path class="step {}" stroke-dasharray="{}" d="{}"/>').format(
                css, _DASHES[i % len(_DASHES)] or "none", _step(_thinned(line), across, up)
            )
        )
    words = "Share of the hypervolume against evaluations, rising step lines"
    figure = _figure(Markup("").join(parts), words, "evaluations →", f"↑ hypervolume, % of {of_what}")
    keys = [
        _key(f"step {colour_class(numbers.get(run))}", "M-12 0H12", run, _DASHES[i % len(_DASHES)])
        for i, (run, _) in enumerate(tables)
        if run
    ]
    return figure + legend(keys) if keys else figure


def _thinned(line: Line) -> Line:
    """Return the line with only its first and last corner and those where `y` changes."""
    kept = [i for i in range(len(line.x)) if i in (0, len(line.x) - 1) or line.y[i] != line.y[i - 1]]
    return Line(line.name, [line.x[i] for i in kept], [line.y[i] for i in kept], line.where, line.series, line.whole)


def training_panel(curves: Sequence[Curve], title: str) -> Markup:
    """Return the panel of losses against steps by role: lines for training losses, points for held-out losses."""
    steps = [step for curve in curves for step in curve.steps]
    losses = [loss for curve in curves for loss in curve.losses]
    across, up, plane = _plane([0.0, *steps], losses, False, False)
    roles = list(dict.fromkeys(curve.role for curve in curves))
    parts, keys = [plane], []
    for curve in curves:
        number = roles.index(curve.role)
        points = [(across.place(step), up.place(loss)) for step, loss in zip(curve.steps, curve.losses, strict=True)]
        if curve.held_out:
            shape = _SHAPES[number % len(_SHAPES)]
            d = "".join(f"M{_number(a)} {_number(b)}{shape}" for a, b in points)
            parts.append(Markup('<path class="held {}" d="{}"/>').format(colour_class(number), d))
            keys.append(_key(f"held {colour_class(number)}", f"M0 0{shape}", f"{curve.role}, held out"))
        else:
            dash = _DASHES[number % len(_DASHES)] or "none"
            parts.append(
                Markup('<path class="curve {}" stroke-dasharray="{}" d="{}"/>').format(
                    colour_class(number), dash, _path(points)
                )
            )
            keys.append(_key(f"curve {colour_class(number)}", "M-12 0H12", f"{curve.role}, trained on", dash))
    figure = _figure(Markup("").join(parts), f"Losses of {title} against steps", "step →", "↑ loss, lower is better")
    return figure + legend(keys)


def check_panels(check: ProxyCheck) -> list[Markup]:
    """Return a panel for each measure and target of a proxy validation, with a marker for each band of costs."""
    panels = []
    for measure, target in check.pairs:
        xs, ys = check.measured[measure].tolist(), check.measured[target].tolist()
        across, up, plane = _plane(xs, ys, False, False)
        parts = [plane]
        for number, (_, band) in enumerate(check.measured.groupby("band")):
            shape = _SHAPES[number % len(_SHAPES)]
            d = "".join(
                f"M{_number(across.place(a))} {_number(up.place(b))}{shape}"
                for a, b in zip(band[measure], band[target], strict=True)
            )
            parts.append(Markup('<path class="held {}" d="{}"/>').format(colour_class(number), d))
        words = f"{check.labels[target]} against {check.labels[measure]}, a marker for each band of costs"
        panels.append(_figure(Markup("").join(parts), words, f"{check.labels[measure]} →", f"↑ {check.labels[target]}"))
    return panels


def check_legend(check: ProxyCheck) -> Markup:
    """Return the legend of `check_panels`, which lists the bands of costs."""
    return legend(
        [
            _key(
                f"held {colour_class(number)}",
                f"M0 0{_SHAPES[number % len(_SHAPES)]}",
                f"{shown(int(band['flops'].min()))} to {shown(int(band['flops'].max()))} FLOPs",
            )
            for number, (_, band) in enumerate(check.measured.groupby("band"))
        ]
    )


def published_panel(published: pd.DataFrame) -> Markup:
    """Return the panel of average GLUE scores against FLOPs of published models, with their names."""
    xs, ys = (published[name].tolist() for name in ("flops_g", "average"))
    across, up, plane = _plane([0.9 * min(xs), *xs, 2.5 * max(xs)], ys, True, False)
    parts = [plane]
    families = list(dict.fromkeys(published["family"]))
    for row in published.to_dict("records"):
        number = families.index(row["family"])
        d = f"M{_number(across.place(row['flops_g']))} {_number(up.place(row['average']))}{_BASELINE_SHAPES[number]}"
        parts.append(Markup('<path class="held {}" d="{}"/>').format(colour_class(number), d))
    points = [(across.place(flops), up.place(score)) for flops, score in zip(xs, ys, strict=True)]
    for name, (x, y, anchor) in zip(
        published["model"], _label_places(published["model"].tolist(), points), strict=True
    ):
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="{}" class="name">{}</text>').format(
                _number(x), _number(y), anchor, name
            )
        )
    keys = [_key(f"held {colour_class(i)}", f"M0 0{_BASELINE_SHAPES[i]}", family) for i, family in enumerate(families)]
    figure = _figure(
        Markup("").join(parts),
        "Average GLUE score against FLOPs of the published students in the table below",
        "FLOPs in G (multiply-adds, 128 tokens, batch 1), lower is better →",
        "↑ average of seven GLUE dev scores (published), higher is better",
    )
    return figure + legend(keys)


def _label_places(names: Sequence[str], points: Sequence[tuple[float, float]]) -> list[tuple[float, float, str]]:
    """Return a place (x, y, anchor) for each name beside its point.

    Names lie inside the figure, and overlap neither each other nor the points if there is room.
    """
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    places = {}
    for i in sorted(range(len(names)), key=lambda i: points[i][1]):
        x, y = points[i]
        width = _LETTER * len(names[i])
        tries = [(x + 8 if right else x - 8 - width, y + shift, right) for shift in _SHIFTS for right in (True, False)]
        boxes = [(left, middle - 7, left + width, middle + 7) for left, middle, _ in tries]
        inside = [k for k, box in enumerate(boxes) if box[0] > _LEFT and box[2] < _WIDTH and 0 < box[1] < _HEIGHT - 40]
        free = [k for k in inside if not any(_overlap(boxes[k], other) for other in taken)]
        left, middle, right = tries[(free or inside or [0])[0]]
        taken.append((left, middle - 7, left + width, middle + 7))
        places[i] = (x + 8 if right else x - 8, middle + 4, "start" if right else "end")
    return [places[i] for i in range(len(names))]


_LETTER = 6.2
"""Width of a letter of a name, with room for the larger type on a phone."""
_SHIFTS = (0, 14, -14, 28, -28, 42, -42, 56, -56)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def row_labels(report: ParetoReport, commands: Sequence[str | None], numbers: Sequence[int]) -> list[str]:
    """Return the words for each row of the frontier that appear when it is pointed at or focused."""
    labels = []
    for row, number, command in zip(report.frontier.to_dict("records"), numbers, commands, strict=True):
        named = {str(key): value for key, value in row.items()}
        head = f"Frontier {number}{', knee' if row['knee'] else ''}: {subnet_words(named)}"
        labels.append("\n".join([head, *value_words(named, report.columns), *([command] if command else [])]))
    return labels


def axis_words(objective: Objective) -> str:
    """Return unit and direction of an objective, for tables."""
    return f"{objective.unit}; {better(objective)}"
