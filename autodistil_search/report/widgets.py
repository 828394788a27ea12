"""Exploring a report in Jupyter, by plotly and ipywidgets. They decide nothing: what they show is of `explore.py`.

Each widget is also a picture, for where a notebook is read without a kernel.
"""

from __future__ import annotations

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from autodistil_search.base.errors import InputError
from autodistil_search.nas.objectives import Objective, parse_amount
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.escape import plotly
from autodistil_search.report.explore import (
    Facts,
    Points,
    best_within,
    engine_marks,
    engines_after,
    explorable_costs,
    facts,
    named_cost,
    point_sets,
    stops,
)
from autodistil_search.report.figures import (
    BASELINE_COLOUR,
    KNEE_COLOUR,
    LINE_COLOUR,
    SPACE_COLOURS,
    engines_figure,
    explored_figure,
)
from autodistil_search.report.views import (
    baseline_points,
    better,
    is_crowded,
    is_wide,
    series_of,
    shown,
    step_lines,
    subnet_words,
    value_words,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SYMBOLS = ("circle", "triangle-left", "triangle-right", "pentagon")
"""As `SPACE_MARKERS`."""
_BASELINE_SYMBOLS = ("square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star-square", "hexagon")
_LARGE = 1e4
"""From here on an axis has ticks as 300M."""


def _library(name: str) -> Any:
    """One of the packages that only notebooks need.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import_module("anywidget")
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"exploring needs {str(error.name).partition('.')[0]}, in Jupyter; run pip install "
            "'autodistil_search[notebooks]'"
        ) from None


_LOADER = """
export default () => {
  let own, loading;
  const load = async () => {
    const url = URL.createObjectURL(new Blob([own.get("_bundle")], { type: "text/javascript" }));
    const plotly = (await import(url)).default();
    URL.revokeObjectURL(url);
    plotly.initialize({ model: own });
    return plotly;
  };
  return {
    initialize({ model }) { own = model; },
    async render(view) { return (await (loading ??= load())).render(view); },
  };
};
"""


def _patient(figure_widget: Any) -> Any:
    """Plotly's `FigureWidget`, which loads its 5 MB when it is drawn.

    Its own is given two seconds to load them by anywidget 0.10 and later; on a slow or busy machine it then stays empty
    for good.
    """
    text = import_module("traitlets").Unicode(str(figure_widget._esm)).tag(sync=True)
    return type("FigureWidget", (figure_widget,), {"_esm": _LOADER, "_bundle": text})


class _Widget(ABC):
    """What a notebook shows: a widget where there is a kernel, else words and a picture of it as it was."""

    _box: Any

    @abstractmethod
    def _picture(self) -> Figure: ...

    @abstractmethod
    def _words(self) -> str: ...

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        file = io.BytesIO()
        self._picture().savefig(file, dpi=100, format="png")
        static = {"text/plain": self._words(), "image/png": base64.b64encode(file.getvalue()).decode()}
        shown_live: dict[str, Any] = self._box._repr_mimebundle_(**kwargs)
        return shown_live | static


class Explorer(_Widget):
    """The frontier, to move a budget along and to click at.

    Attributes:
        row: The row of `frontier` or `evaluations` that is shown, for `Run.student`.
    """

    row: pd.Series[Any]

    def __init__(self, report: ParetoReport, budget: str | None = None) -> None:
        self._graphs, controls = _library("plotly.graph_objects"), _library("ipywidgets")
        self._report, self._y, self._cost = report, report.objectives[0], named_cost(report, budget)
        self._heights = [float(end(report.evaluations[self._y.name])) for end in (min, max)]
        self._limit: float | None = None
        self._aligning = False
        self._facts = controls.HTML()
        wide = {"description_width": "initial"}
        costs = [(each.label, each) for each in explorable_costs(report)]
        self._choice = controls.Dropdown(options=costs, value=self._cost, description="Budget of", style=wide)
        self._slider = controls.SelectionSlider(options=[""], description="at", layout={"width": "380px"})
        self._amount = controls.Text(
            continuous_update=False, placeholder="200M", description="or type it", layout={"width": "180px"}
        )
        self._bound(self._cost)
        traces, clicked = self._traces()
        self._figure = _patient(self._graphs.FigureWidget)(traces, self._layout())
        self._listen(clicked)
        self._choice.observe(lambda change: self._redraw(change["new"]), "value")
        self._slider.observe(lambda change: self._slide(change["new"]), "value")
        self._amount.observe(lambda change: self._type(change["new"]), "value")
        row = {"flex_flow": "row wrap", "align_items": "flex-start"}
        plot = controls.Box([self._figure], layout={"flex": "0 0 590px"})
        told = controls.Box([self._facts], layout={"flex": "1 1 320px"})
        self._box = controls.VBox(
            [
                controls.Box([self._choice, self._slider, self._amount], layout=row),
                controls.Box([plot, told], layout=row),
            ]
        )

    def _picture(self) -> Figure:
        return explored_figure(self._report, self._cost, self.row, self._limit)

    def _words(self) -> str:
        told = facts(self._report, self.row)
        values = [f"{name}: {value}" for name, value, _ in told.measured]
        return "\n".join([f"{told.subnet}; {told.place}", *values, *([told.get] if told.get else [])])

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        self._figure._repr_mimebundle_()  # tells a browser what was changed before it is drawn
        return super()._repr_mimebundle_(**kwargs)

    def _bound(self, cost: Objective) -> None:
        """Begin with another cost, at the budget of the knee."""
        self._cost, self._amount.value = cost, ""
        sign = "≤" if cost.direction == "minimize" else "≥"
        self._aligning = True
        self._slider.options = [(f"{sign} {shown(each)}", each) for each in stops(self._report, cost)]
        self._aligning = False
        self._align(float(self._report.frontier.loc[self._report.frontier["knee"], cost.name].iloc[0]))
        self._within(self._slider.value, f"Best with {cost.label} {self._slider.label}")

    def _redraw(self, cost: Objective) -> None:
        self._bound(cost)
        traces, clicked = self._traces()
        self._figure.data = ()
        self._figure.add_traces(traces)
        self._figure.update_layout(self._layout())
        self._listen(clicked)

    def _listen(self, clicked: Mapping[int, Points]) -> None:
        for number, points in clicked.items():
            self._figure.data[number].on_click(partial(self._click, points))

    def _align(self, amount: float) -> None:
        """Move the slider, and nothing else, to the budget that has the same student as `amount`."""
        found, least = stops(self._report, self._cost), self._cost.direction == "maximize"
        kept = [each for each in found if (each >= amount if least else each <= amount)] or found
        self._aligning = True
        self._slider.value = min(kept) if least else max(kept)
        self._aligning = False

    def _slide(self, amount: float) -> None:
        if not self._aligning:
            self._amount.value = ""
            self._within(amount, f"Best with {self._cost.label} {self._slider.label}")
            self._mark()

    def _type(self, text: str) -> None:
        if text.strip():
            self._within(text, f"Best with {self._cost.label} {self._slider.label[0]} {text.strip()}")
            self._mark()

    def _within(self, amount: float | str, why: str) -> None:
        try:
            row = best_within(self._report, self._cost, amount)
        except InputError as error:
            self._facts.value = Markup('<p role="alert">{}</p>').format(str(error).removeprefix("--pick "))
            return
        self._limit = parse_amount(amount, "budget") if isinstance(amount, str) else amount
        if isinstance(amount, str):
            self._align(float(row[self._cost.name]))
        self._tell(row, why)

    def _tell(self, row: pd.Series[Any], why: str) -> None:
        self.row = row
        self._facts.value = facts_html(facts(self._report, row), why)

    def _mark(self) -> None:
        """Move the budget and the ring, which are the last traces."""
        with self._figure.batch_update():
            for trace, (x, y) in zip(self._figure.data[-2:], self._places(), strict=True):
                trace.x, trace.y = x, y

    def _places(self) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
        """Where the budget and the ring are."""
        budget = ([], []) if self._limit is None else ([self._limit, self._limit], self._heights)
        return budget, ([float(self.row[self._cost.name])], [float(self.row[self._y.name])])

    def _click(self, points: Points, _trace: Any, at: Any, _state: Any) -> None:
        if at.point_inds:
            self._limit, self._amount.value = None, ""
            self._tell(points.rows.iloc[at.point_inds[0]], "The point you clicked")
            self._mark()

    def _traces(self) -> tuple[list[Any], dict[int, Points]]:
        """The traces, and what can be clicked of them by its number."""
        report, x, y, scatter = self._report, self._cost, self._y, self._graphs.Scatter
        series = series_of(report)
        traces: list[Any] = []
        clicked: dict[int, Points] = {}
        for points in point_sets(report):
            colour = SPACE_COLOURS[points.series % len(SPACE_COLOURS)]
            symbol = _SYMBOLS[points.series % len(_SYMBOLS)]
            if points.on_frontier:
                edge = colour if len(series) > 1 else LINE_COLOUR
                marker = {"symbol": symbol, "size": 9, "color": "white", "line": {"color": edge, "width": 1.5}}
            else:
                marker = {"symbol": symbol, "size": 6, "color": colour, "opacity": 0.5}
            clicked[len(traces)] = points
            traces.append(
                scatter(
                    x=points.rows[x.name].tolist(),
                    y=points.rows[y.name].tolist(),
                    mode="markers",
                    marker=marker,
                    name=plotly(f"scored, {series[points.series].name}"),
                    showlegend=not points.on_frontier,
                    hoverinfo="text",
                    hovertext=[_hover(report, row) for row in points.rows.to_dict("records")],
                )
            )
        return [*traces, *self._lines(), *self._baselines(), *self._marks()], clicked

    def _lines(self) -> list[Any]:
        return [
            self._graphs.Scatter(
                x=list(line.x),
                y=list(line.y),
                mode="lines",
                line={
                    "shape": "hv" if line.where == "post" else "vh",
                    "color": LINE_COLOUR if line.series is None else SPACE_COLOURS[line.series % len(SPACE_COLOURS)],
                    "dash": "solid" if line.whole else "dot",
                    "width": 2 if line.whole else 1,
                },
                name=plotly(line.name),
                hoverinfo="skip",
            )
            for line in step_lines(self._report, self._cost, self._y)
        ]

    def _baselines(self) -> list[Any]:
        """Off at first where they lie so far off that little room is left; their names in the legend bring them."""
        report, x, y = self._report, self._cost, self._y
        return [
            self._graphs.Scatter(
                x=[point.x],
                y=[point.y],
                mode="markers",
                marker={
                    "symbol": _BASELINE_SYMBOLS[point.number % len(_BASELINE_SYMBOLS)],
                    "size": 10,
                    "color": BASELINE_COLOUR,
                },
                name=plotly(point.name),
                visible="legendonly" if is_crowded(report, x, y) else True,
                hoverinfo="text",
                hovertext=plotly(point.name, f"{x.label}: {shown(point.x)}", f"{y.label}: {shown(point.y)}"),
            )
            for point in baseline_points(report, x, y)
        ]

    def _marks(self) -> list[Any]:
        """The knee, the budget and the ring around what is shown."""
        scatter, knee = self._graphs.Scatter, self._report.frontier[self._report.frontier["knee"]]
        budget, place = self._places()
        star = {"symbol": "star", "size": 13, "color": KNEE_COLOUR}
        ring = {"symbol": "circle-open", "size": 20, "color": KNEE_COLOUR, "line": {"width": 3}}
        dashes = {"color": KNEE_COLOUR, "width": 1, "dash": "dash"}
        return [
            scatter(
                x=knee[self._cost.name].tolist(),
                y=knee[self._y.name].tolist(),
                mode="markers",
                marker=star,
                name="knee",
                hoverinfo="skip",
            ),
            scatter(x=budget[0], y=budget[1], mode="lines", line=dashes, name="budget", hoverinfo="skip"),
            scatter(x=place[0], y=place[1], mode="markers", marker=ring, name="shown", hoverinfo="skip"),
        ]

    def _layout(self) -> Mapping[str, Any]:
        axes = {}
        for key, objective in (("xaxis", self._cost), ("yaxis", self._y)):
            values = self._report.evaluations[objective.name].tolist()
            axes[key] = {
                "title": {"text": plotly(objective.label, f"{objective.unit}, {better(objective)}")},
                "type": "log" if is_wide(objective, values) else "linear",
                "nticks": 5,
                "tickangle": 0,
                "tickformat": "~s" if max(map(abs, values)) >= _LARGE else "",
            }
        return axes | {
            "template": "plotly_white",
            "width": 580,
            "height": 540,
            "margin": {"l": 70, "r": 10, "t": 20, "b": 60},
            "font": {"size": 11},
            "legend": {"orientation": "h", "y": -0.2, "entrywidth": 165, "font": {"size": 10}},
            "hoverlabel": {"align": "left"},
            "uirevision": self._cost.name,
        }


def _hover(report: ParetoReport, row: Mapping[Any, Any]) -> str:
    values = {str(key): value for key, value in row.items()}
    return plotly(subnet_words(values), *value_words(values, report.columns))


class EngineExplorer(_Widget):
    """What each engine finds of the exact hypervolume after a number of evaluations that one chooses.

    Raises:
        InputError: if the run has no such comparison.
    """

    def __init__(self, report: ParetoReport) -> None:
        controls = _library("ipywidgets")
        marks = engine_marks(report)
        if not marks:
            raise InputError(
                "this run compared no engines; allowed: runs that scored every subnet of a space of more than 20, such "
                "as those of --engine exhaustive"
            )
        self._report = report
        self._table = controls.HTML()
        self._choice = controls.ToggleButtons(
            options=marks, description="evaluations", style={"button_width": "60px"}, tooltips=[""] * len(marks)
        )
        self._choice.observe(lambda change: self._tell(change["new"]), "value")
        self._tell(self._choice.value)
        self._box = controls.VBox([self._choice, self._table])

    def _picture(self) -> Figure:
        return engines_figure(self._report)

    def _words(self) -> str:
        found = engines_after(self._report, self._choice.value)
        return f"after {self._choice.value} evaluations:\n{found.round(4).to_string(index=False)}"

    def _tell(self, mark: int) -> None:
        self._table.value = engines_html(self._report, mark)


def _row(name: str, words: str, share: float, colour: str) -> Markup:
    """A line of a table, with a bar that is so much of its cell."""
    return Markup(
        '<tr><td style="padding-right:1em">{}</td>'
        '<td style="text-align:right;white-space:nowrap;padding-right:1em">{}</td>'
        '<td style="width:45%"><div style="background:{};height:0.9em;width:{:.1f}%"></div></td></tr>'
    ).format(name, words, colour, 100 * share)


def _table(rows: list[Markup], caption: str) -> Markup:
    return Markup(
        '<table style="width:100%;margin:0.6em 0"><caption style="text-align:left;caption-side:top;'
        'font-weight:bold">{}</caption>{}</table>'
    ).format(caption, Markup("").join(rows))


def facts_html(told: Facts, why: str) -> Markup:
    """A subnet's facts: in words, as a table of what was measured, and a bar for each part of its parameters."""
    measured = [
        Markup(
            '<tr><td style="padding-right:1em">{}</td>'
            '<td style="text-align:right;white-space:nowrap;padding-right:1em">{}</td>'
            '<td style="width:45%;font-size:85%">{}</td></tr>'
        ).format(*each)
        for each in told.measured
    ]
    total = sum(told.parts.values())
    parts = [
        _row(name, f"{shown(count)} ({count / total:.0%})", count / max(told.parts.values()), SPACE_COLOURS[i])
        for i, (name, count) in enumerate(told.parts.items())
    ]
    get = (
        Markup('<p>Take it out:<br><code style="white-space:pre-wrap">{}</code></p>').format(told.get)
        if told.get
        else ""
    )
    return Markup('<div style="line-height:1.4"><p><strong>{}</strong><br>{}<br>{}</p>{}{}{}</div>').format(
        why,
        told.subnet,
        told.place,
        _table(measured, "Measured"),
        _table(parts, f"Where its {shown(total)} parameters are"),
        get,
    )


def engines_html(report: ParetoReport, mark: int) -> Markup:
    """A line for each engine, with a bar for what it misses, as long as at any other number of evaluations."""
    worst = 1 - report.engines["share"].min()
    rows = [
        _row(name, f"{share:.2%} ± {spread:.2%}", (1 - share) / (worst or 1.0), BASELINE_COLOUR)
        for name, share, spread in engines_after(report, mark).itertuples(index=False)
    ]
    caption = f"Share of the exact hypervolume after {mark} evaluations; bars: what is missing of it, lower is better"
    return Markup('<div style="line-height:1.4;max-width:48em">{}</div>').format(_table(rows, caption))
