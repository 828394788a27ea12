"""Explorers of a report in Jupyter, by plotly and ipywidgets. Their data come from `explore`.

Each widget also has a picture, for notebooks that are read without a kernel.
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
"""Counterparts of `SPACE_MARKERS` in plotly."""
_BASELINE_SYMBOLS = ("square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star-square", "hexagon")
_LARGE = 1e4
"""Least absolute value of an axis whose ticks are written as 300M."""


def _library(name: str) -> Any:
    """Return a package that only notebooks need.

    Raises:
        InputError: if the package is not installed.
    """
    try:
        import_module("anywidget")
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"exploring a run in Jupyter needs {str(error.name).partition('.')[0]}; run pip install "
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


def _lazy_figure_widget(figure_widget: Any) -> Any:
    """Return plotly's `FigureWidget` as a class that loads its 5 MB of script only when it is drawn.

    anywidget 0.10 and later allow the original two seconds to load. On a slow or busy machine, it then stays empty.
    """
    text = import_module("traitlets").Unicode(str(figure_widget._esm)).tag(sync=True)
    return type("FigureWidget", (figure_widget,), {"_esm": _LOADER, "_bundle": text})


class _Widget(ABC):
    """Widget of a notebook, which shows its last state as text and picture if there is no kernel."""

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
    """Widget of the frontier, with a budget to move and points to click.

    Attributes:
        row: Row of `frontier` or `evaluations` on display, an argument for `Run.student`.
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
        costs = [(cost.label, cost) for cost in explorable_costs(report)]
        self._choice = controls.Dropdown(options=costs, value=self._cost, description="Budget of", style=wide)
        self._slider = controls.SelectionSlider(options=[""], description="at", layout={"width": "380px"})
        self._amount = controls.Text(
            continuous_update=False, placeholder="200M", description="or type it", layout={"width": "180px"}
        )
        self._select_cost(self._cost)
        traces, clicked = self._traces()
        self._figure = _lazy_figure_widget(self._graphs.FigureWidget)(traces, self._layout())
        self._listen(clicked)
        self._choice.observe(lambda change: self._redraw(change["new"]), "value")
        self._slider.observe(lambda change: self._slide(change["new"]), "value")
        self._amount.observe(lambda change: self._type(change["new"]), "value")
        row = {"flex_flow": "row wrap", "align_items": "flex-start"}
        plot = controls.Box([self._figure], layout={"flex": "0 0 590px"})
        details = controls.Box([self._facts], layout={"flex": "1 1 320px"})
        self._box = controls.VBox(
            [
                controls.Box([self._choice, self._slider, self._amount], layout=row),
                controls.Box([plot, details], layout=row),
            ]
        )

    def _picture(self) -> Figure:
        return explored_figure(self._report, self._cost, self.row, self._limit)

    def _words(self) -> str:
        details = facts(self._report, self.row)
        values = [f"{name}: {value}" for name, value, _ in details.measured]
        return "\n".join([f"{details.subnet}; {details.place}", *values, *([details.get] if details.get else [])])

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        self._figure._repr_mimebundle_()  # sends changes to the browser before it draws
        return super()._repr_mimebundle_(**kwargs)

    def _select_cost(self, cost: Objective) -> None:
        """Select another cost, with the cost of the knee as its budget."""
        self._cost, self._amount.value = cost, ""
        sign = "≤" if cost.direction == "minimize" else "≥"
        self._aligning = True
        self._slider.options = [(f"{sign} {shown(stop)}", stop) for stop in stops(self._report, cost)]
        self._aligning = False
        self._move_slider(float(self._report.frontier.loc[self._report.frontier["knee"], cost.name].iloc[0]))
        self._within(self._slider.value, f"Best with {cost.label} {self._slider.label}")

    def _redraw(self, cost: Objective) -> None:
        self._select_cost(cost)
        traces, clicked = self._traces()
        self._figure.data = ()
        self._figure.add_traces(traces)
        self._figure.update_layout(self._layout())
        self._listen(clicked)

    def _listen(self, clicked: Mapping[int, Points]) -> None:
        for number, points in clicked.items():
            self._figure.data[number].on_click(partial(self._click, points))

    def _move_slider(self, amount: float) -> None:
        """Move only the slider, to the budget with the same student as `amount`."""
        budgets, least = stops(self._report, self._cost), self._cost.direction == "maximize"
        kept = [budget for budget in budgets if (budget >= amount if least else budget <= amount)] or budgets
        self._aligning = True
        self._slider.value = min(kept) if least else max(kept)
        self._aligning = False

    def _slide(self, amount: float) -> None:
        if not self._aligning:
            self._amount.value = ""
            self._within(amount, f"Best with {self._cost.label} {self._slider.label}")
            self._move_marks()

    def _type(self, text: str) -> None:
        if text.strip():
            self._within(text, f"Best with {self._cost.label} {self._slider.label[0]} {text.strip()}")
            self._move_marks()

    def _within(self, amount: float | str, why: str) -> None:
        try:
            row = best_within(self._report, self._cost, amount)
        except InputError as error:
            self._facts.value = Markup('<p role="alert">{}</p>').format(str(error).removeprefix("--pick "))
            return
        self._limit = parse_amount(amount, "budget") if isinstance(amount, str) else amount
        if isinstance(amount, str):
            self._move_slider(float(row[self._cost.name]))
        self._show(row, why)

    def _show(self, row: pd.Series[Any], why: str) -> None:
        self.row = row
        self._facts.value = facts_html(facts(self._report, row), why)

    def _move_marks(self) -> None:
        """Move the budget and the ring, which are the last two traces."""
        with self._figure.batch_update():
            for trace, (x, y) in zip(self._figure.data[-2:], self._places(), strict=True):
                trace.x, trace.y = x, y

    def _places(self) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
        """Return the coordinates of the budget and of the ring."""
        budget = ([], []) if self._limit is None else ([self._limit, self._limit], self._heights)
        return budget, ([float(self.row[self._cost.name])], [float(self.row[self._y.name])])

    def _click(self, points: Points, _trace: Any, at: Any, _state: Any) -> None:
        if at.point_inds:
            self._limit, self._amount.value = None, ""
            self._show(points.rows.iloc[at.point_inds[0]], "The point you clicked")
            self._move_marks()

    def _traces(self) -> tuple[list[Any], dict[int, Points]]:
        """Return the traces, and the points of clickable traces by the number of the trace."""
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
        """Return the traces of the baselines, hidden at first if they leave little room for the scored subnets.

        A click on the name in the legend shows a hidden baseline.
        """
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
        """Return the traces of the knee, of the budget and of the ring around the subnet on display."""
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
    """Widget of the share of the exact hypervolume that each engine reaches after a number of evaluations.

    Raises:
        InputError: if the run has no comparison of engines.
    """

    def __init__(self, report: ParetoReport) -> None:
        controls = _library("ipywidgets")
        marks = engine_marks(report)
        if not marks:
            raise InputError(
                "this run has no comparison of engines; allowed: runs that scored every subnet of a space of more than "
                "20, such as those of --engine exhaustive"
            )
        self._report = report
        self._table = controls.HTML()
        self._choice = controls.ToggleButtons(
            options=marks, description="evaluations", style={"button_width": "60px"}, tooltips=[""] * len(marks)
        )
        self._choice.observe(lambda change: self._show(change["new"]), "value")
        self._show(self._choice.value)
        self._box = controls.VBox([self._choice, self._table])

    def _picture(self) -> Figure:
        return engines_figure(self._report)

    def _words(self) -> str:
        results = engines_after(self._report, self._choice.value)
        return f"after {self._choice.value} evaluations:\n{results.round(4).to_string(index=False)}"

    def _show(self, mark: int) -> None:
        self._table.value = engines_html(self._report, mark)


def _row(name: str, words: str, share: float, colour: str) -> Markup:
    """Return a line of a table with a bar. share: share of the cell's width that the bar takes."""
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
    """Return the details of a subnet as HTML: words, a table of measurements, and a bar for each part's parameters."""
    measured = [
        Markup(
            '<tr><td style="padding-right:1em">{}</td>'
            '<td style="text-align:right;white-space:nowrap;padding-right:1em">{}</td>'
            '<td style="width:45%;font-size:85%">{}</td></tr>'
        ).format(*line)
        for line in told.measured
    ]
    total = sum(told.parts.values())
    parts = [
        _row(name, f"{shown(count)} ({count / total:.0%})", count / max(told.parts.values()), SPACE_COLOURS[i])
        for i, (name, count) in enumerate(told.parts.items())
    ]
    get = (
        Markup('<p>Get the model:<br><code style="white-space:pre-wrap">{}</code></p>').format(told.get)
        if told.get
        else ""
    )
    return Markup('<div style="line-height:1.4"><p><strong>{}</strong><br>{}<br>{}</p>{}{}{}</div>').format(
        why,
        told.subnet,
        told.place,
        _table(measured, "Measured"),
        _table(parts, f"Its {shown(total)} parameters by part"),
        get,
    )


def engines_html(report: ParetoReport, mark: int) -> Markup:
    """Return a table of engines as HTML, with a bar for the share that each misses.

    Bars have the same scale at every number of evaluations.
    """
    worst = 1 - report.engines["share"].min()
    rows = [
        _row(name, f"{share:.2%} ± {spread:.2%}", (1 - share) / (worst or 1.0), BASELINE_COLOUR)
        for name, share, spread in engines_after(report, mark).itertuples(index=False)
    ]
    caption = f"Share of the exact hypervolume after {mark} evaluations; bars: missing share, lower is better"
    return Markup('<div style="line-height:1.4;max-width:48em">{}</div>').format(_table(rows, caption))
