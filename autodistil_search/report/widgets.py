"""Explorers of a report in Jupyter, by plotly and ipywidgets. Their data come from `explore`.

Each widget also has a picture, for notebooks that are read without a kernel.
"""

from __future__ import annotations

import base64
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from autodistil_search.base.errors import InputError
from autodistil_search.nas.objectives import Objective, parse_amount
from autodistil_search.report.charts import CONFIG, chart_columns, frontier_chart, painted, size_columns
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.explore import (
    Facts,
    Points,
    best_within,
    engine_marks,
    engines_after,
    explorable_costs,
    facts,
    named_cost,
    stops,
)
from autodistil_search.report.figures import engines_figure, explored_figure
from autodistil_search.report.style import LIGHT, series_colour
from autodistil_search.report.views import SIZE_LABELS, axis_span, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        controls = _library("ipywidgets")
        self._report, self._y, self._cost = report, report.objectives[0], named_cost(report, budget)
        self._colour: str | None = None
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
        heights = [(column.label, column) for column in chart_columns(report)]
        self._height = controls.Dropdown(options=heights, value=self._y, description="against", style=wide)
        colours = [("space", None), *((SIZE_LABELS[name], name) for name in size_columns(report))]
        self._colours = controls.Dropdown(options=colours, description="Colour by", style=wide)
        self._select_cost(self._cost)
        spec, points = self._chart()
        self._figure = _lazy_figure_widget(import_module("plotly.graph_objects").FigureWidget)(spec)
        self._figure._config = {**self._figure._config, **CONFIG}
        self._listen(points)
        self._choice.observe(lambda change: self._change_cost(change["new"]), "value")
        self._height.observe(lambda change: self._redraw(y=change["new"]), "value")
        self._colours.observe(lambda change: self._redraw(colour=change["new"]), "value")
        self._slider.observe(lambda change: self._slide(change["new"]), "value")
        self._amount.observe(lambda change: self._type(change["new"]), "value")
        row = {"flex_flow": "row wrap", "align_items": "flex-start"}
        plot = controls.Box([self._figure], layout={"flex": "0 0 590px"})
        details = controls.Box([self._facts], layout={"flex": "1 1 320px"})
        self._box = controls.VBox(
            [
                controls.Box([self._choice, self._slider, self._amount], layout=row),
                controls.Box([self._height, self._colours], layout=row),
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

    def _change_cost(self, cost: Objective) -> None:
        self._select_cost(cost)
        self._redraw()

    def _redraw(self, **changed: Any) -> None:
        """Draw the figure again, with another quantity `y` or `colour` if given."""
        self._y, self._colour = changed.get("y", self._y), changed.get("colour", self._colour)
        spec, points = self._chart()
        self._figure.data = ()
        self._figure.add_traces(spec["data"])
        self._figure.update_layout(spec["layout"], overwrite=True)
        self._listen(points)

    def _chart(self) -> tuple[dict[str, Any], Sequence[Points]]:
        """Return the figure in the colours of a notebook, with budget and ring, and the points of its traces."""
        spec, points = frontier_chart(self._report, self._cost, self._y, self._colour)
        for trace, (x, y) in zip(spec["data"][-2:], self._places(), strict=True):
            trace |= {"x": x, "y": y}
        spec["layout"] |= {"template": "none", "width": 580, "height": 540, "autosize": False}
        return painted(spec, LIGHT), points

    def _listen(self, points: Sequence[Points]) -> None:
        for trace, part in zip(self._figure.data, points, strict=False):
            trace.on_click(partial(self._click, part))

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
        span = axis_span(self._report, self._y)
        budget = ([], []) if self._limit is None else ([self._limit, self._limit], [span.low, span.high])
        return budget, ([float(self.row[self._cost.name])], [float(self.row[self._y.name])])

    def _click(self, points: Points, _trace: Any, at: Any, _state: Any) -> None:
        if at.point_inds:
            self._limit, self._amount.value = None, ""
            self._show(points.rows.iloc[at.point_inds[0]], "The point you clicked")
            self._move_marks()


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
        _row(name, f"{shown(count)} ({count / total:.0%})", count / max(told.parts.values()), LIGHT[series_colour(i)])
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
        _row(name, f"{share:.2%} ± {spread:.2%}", (1 - share) / (worst or 1.0), LIGHT["baseline"])
        for name, share, spread in engines_after(report, mark).itertuples(index=False)
    ]
    caption = f"Share of the exact hypervolume after {mark} evaluations; bars: missing share, lower is better"
    return Markup('<div style="line-height:1.4;max-width:48em">{}</div>').format(_table(rows, caption))
