"""Figures of a `ParetoReport` by plotly, for the page and for notebooks, as the JSON that plotly reads.

Every number comes from the report and `views`. Colours are names of `style.LIGHT`. The page replaces them by the
colours of its light or dark scheme, and `painted` does so for notebooks.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from autodistil_search.nas.objectives import Objective
from autodistil_search.report.data import ParetoReport
from autodistil_search.report.escape import plotly, visible
from autodistil_search.report.explore import Points, point_sets
from autodistil_search.report.run_parts import Curve, ProxyCheck
from autodistil_search.report.style import (
    BASELINE_MARKERS,
    DASHES,
    KNEE_MARKER,
    PART_DASH,
    SERIES_MARKERS,
    SIZE_SCALE,
    TEACHER_DASH,
    TEACHER_MARKER,
    baseline_marker,
    series_colour,
    series_marker,
)
from autodistil_search.report.validation_table import Panel, panels
from autodistil_search.report.views import (
    SIZE_LABELS,
    axes_pairs,
    axis_span,
    baseline_points,
    better,
    of_runs,
    parallel_axes,
    parallel_rows,
    row_labels,
    run_numbers,
    series_numbers,
    series_of,
    shown,
    sizes_of,
    step_lines,
    subnet_words,
    teacher_lines,
    ticks,
    value_words,
    varying_sizes,
)

Spec = dict[str, Any]
"""Trace, layout or figure, as plotly reads it."""
CONFIG: Mapping[str, Any] = {
    "displaylogo": False,
    "showSendToCloud": False,  # nothing leaves the page
    "plotlyServerURL": "",
    "responsive": True,
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
    "toImageButtonOptions": {"format": "png", "scale": 2},
}
_LARGE = 1e4
"""Least absolute value of an axis whose ticks are written as 300M."""
_TICKS = 8
"""Greatest number of labels of a logarithmic axis."""
_LINE_LENGTH = 46
"""Greatest number of letters in a line of a legend."""


def painted(spec: Any, colours: Mapping[str, str]) -> Any:
    """Return a specification with colours in place of their names."""
    if isinstance(spec, dict):
        return {
            key: colours.get(value, value)
            if key.endswith("color") and isinstance(value, str)
            else painted(value, colours)
            for key, value in spec.items()
        }
    return [painted(part, colours) for part in spec] if isinstance(spec, list) else spec


def chart_columns(report: ParetoReport) -> list[Objective]:
    """Return the quantities that can be an axis, the first pair of objectives first."""
    pair = axes_pairs(report)[0]
    return [*pair, *(column for column in report.columns if column not in pair and _is_complete(report, column))]


def _is_complete(report: ParetoReport, column: Objective) -> bool:
    tables = report.evaluations, report.frontier
    return all(column.name in table and np.isfinite(table[column.name].to_numpy(float)).all() for table in tables)


def frontier_chart(
    report: ParetoReport, x: Objective, y: Objective, colour: str | None = None
) -> tuple[Spec, list[Points]]:
    """Return the figure of `y` against `x`, and the subnets of its first traces, in the order of the points.

    The last two traces are the budget and the ring around the selected subnet; both are empty.

    colour: size that gives the colour of each subnet; None for colours by series.
    """
    points, data = point_sets(report), []
    for part, trace in zip(points, point_traces(report, points), strict=True):
        values = {"x": part.rows[x.name].tolist(), "y": part.rows[y.name].tolist()}
        data.append({**trace, **values, **({} if colour is None else sized(trace, sizes_of(part.rows, colour)))})
    layout = frontier_layout(report) | {"xaxis": axis_layout(report, x), "yaxis": axis_layout(report, y)}
    if colour is not None:
        layout["coloraxis"] = size_layout(colour)
    if colour is not None:
        data += key_traces(data)
    return {"data": [*data, *overlay_traces(report, x, y), *mark_traces()], "layout": layout}, points


def sized(trace: Spec, sizes: Sequence[float]) -> Spec:
    """Return the changes of a trace whose points are coloured by a size."""
    marker = {**trace["marker"], "color": list(sizes), "coloraxis": "coloraxis", "opacity": 0.9}
    return {"marker": marker, "showlegend": False}


def key_traces(traces: Sequence[Spec]) -> list[Spec]:
    """Return a trace without points for each name of scored subnets, for the legend if sizes give the colours."""
    keys = []
    for trace in traces:
        if "line" not in trace["marker"]:
            marker = {"symbol": trace["marker"]["symbol"], "size": 6, "color": "quiet"}
            keys.append({"type": "scatter", "mode": "markers", "x": [None], "y": [None], "marker": marker})
            keys[-1] |= {"name": trace["name"], "hoverinfo": "skip"}
    return keys


def size_layout(name: str) -> Spec:
    """Return the colour scale of a size."""
    title = {"text": SIZE_LABELS[name]}
    return {"colorscale": SIZE_SCALE, "colorbar": {"title": title, "thickness": 12, "outlinewidth": 0}}


def point_traces(report: ParetoReport, points: Sequence[Points]) -> list[Spec]:
    """Return a trace without coordinates for each of `points`."""
    series, labels, traces = series_of(report), pd.Series(row_labels(report), report.frontier.index), []
    for part in points:
        colour, symbol = series_colour(part.series), series_marker(part.series).plotly
        if part.on_frontier:
            edge = colour if len(series) > 1 else "ink"
            marker = {"symbol": symbol, "size": 10, "color": "paper", "line": {"color": edge, "width": 1.8}}
            words = [plotly(*label.split("\n")) for label in labels[part.rows.index]]
        else:
            marker = {"symbol": symbol, "size": 6, "color": colour, "opacity": 0.5}
            words = [_scored_words(report, row) for row in part.rows.to_dict("records")]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "marker": marker,
                "name": _legend(f"{'frontier' if part.on_frontier else 'scored'}, {series[part.series].name}"),
                "showlegend": not part.on_frontier,
                "zorder": 2 if part.on_frontier else 0,
                "hoverinfo": "text",
                "hovertext": words,
            }
        )
    return traces


def _scored_words(report: ParetoReport, row: Mapping[Any, Any]) -> str:
    values = {str(key): value for key, value in row.items()}
    return plotly(subnet_words(values), *value_words(values, report.columns))


def _legend(name: str) -> str:
    """Return a name for a legend, in lines that fit a phone."""
    return plotly(*(textwrap.wrap(visible(name), _LINE_LENGTH) or [""]))


def overlay_traces(report: ParetoReport, x: Objective, y: Objective) -> list[Spec]:
    """Return the step lines, the teacher, the baselines and the knee of `y` against `x`."""
    parts = (_step_traces, _teacher_traces, _baseline_traces, _knee_traces)
    return [trace for part in parts for trace in part(report, x, y)]


def _step_traces(report: ParetoReport, x: Objective, y: Objective) -> list[Spec]:
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": list(line.x),
            "y": list(line.y),
            "line": {
                "shape": "hv" if line.where == "post" else "vh",
                "color": series_colour(line.series),
                "dash": (DASHES[number % len(DASHES)] if line.whole else PART_DASH).plotly,
                "width": 2 if line.whole else 1,
            },
            "name": _legend(line.name),
            "hoverinfo": "skip",
            "zorder": 1,
        }
        for number, line in enumerate(step_lines(report, x, y))
    ]


def _teacher_traces(report: ParetoReport, x: Objective, y: Objective) -> list[Spec]:
    traces = []
    for line in teacher_lines(report, x, y):
        across = axis_span(report, x if line.axis == "y" else y)
        along, fixed = [across.low, across.high], [line.place, line.place]
        places = {"x": along, "y": fixed} if line.axis == "y" else {"x": fixed, "y": along}
        style = {"color": "quiet", "dash": TEACHER_DASH.plotly, "width": 1.5}
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                **places,
                "line": style,
                "name": _legend(line.name),
                "hoverinfo": "name",
            }
        )
    return traces


def _baseline_traces(report: ParetoReport, x: Objective, y: Objective) -> list[Spec]:
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [point.place[0]],
            "y": [point.place[1]],
            "marker": {
                "symbol": baseline_marker(point.number).plotly,
                "size": 11,
                "color": "baseline",
                "line": {"color": "paper", "width": 1},
            },
            "cliponaxis": False,
            "name": _legend(point.name),
            "hoverinfo": "text",
            "hovertext": [plotly(point.name, f"{x.label}: {shown(point.x)}", f"{y.label}: {shown(point.y)}")],
        }
        for point in baseline_points(report, x, y)
    ]


def _knee_traces(report: ParetoReport, x: Objective, y: Objective) -> list[Spec]:
    knee = report.frontier[report.frontier["knee"]]
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": knee[x.name].tolist(),
            "y": knee[y.name].tolist(),
            "marker": {"symbol": KNEE_MARKER.plotly, "size": 15, "color": "ink"},
            "name": "knee, nearest to the ideal point",
            "hoverinfo": "skip",
            "zorder": 3,
        }
    ]


def mark_traces() -> list[Spec]:
    """Return the empty traces of the budget and of the ring around the selected subnet."""
    empty: Spec = {"type": "scatter", "x": [], "y": [], "hoverinfo": "skip", "zorder": 5}
    ring = {"symbol": "circle-open", "size": 21, "color": "accent", "line": {"width": 3, "color": "accent"}}
    return [
        {
            **empty,
            "mode": "lines",
            "line": {"color": "accent", "width": 1.5, "dash": DASHES[1].plotly},
            "name": "budget",
        },
        {**empty, "mode": "markers", "marker": ring, "name": "selected"},
    ]


def axis_layout(report: ParetoReport, objective: Objective) -> Spec:
    """Return the axis of a quantity, with its range, unit and direction."""
    span = axis_span(report, objective)
    ends = [span.low, span.high]
    title = plotly(objective.label, f"{objective.unit}; {better(objective)}")
    return {
        **_axis(title),
        "type": "log" if span.wide else "linear",
        "range": [float(np.log10(end)) for end in ends] if span.wide else ends,
        "nticks": 6,
        "tickformat": "~s" if max(map(abs, ends)) >= _LARGE else "",
        **({"tickvals": ticks(span.low, span.high, span.wide, _TICKS)} if span.wide else {}),
    }


def _axis(title: str) -> Spec:
    return {
        "title": {"text": title, "font": {"size": 12, "color": "quiet"}, "standoff": 8},
        "gridcolor": "line",
        "linecolor": "quiet",
        "tickfont": {"color": "quiet"},
        "tickangle": 0,
        "zeroline": False,
        "automargin": True,
    }


def layout(height: int, x: Spec, y: Spec) -> Spec:
    """Return the layout of a figure. height: height in pixels. x, y: the axes."""
    return {
        "height": height,
        "autosize": True,
        "margin": {"l": 60, "r": 12, "t": 28, "b": 50},
        "font": {"size": 12, "color": "ink", "family": "system-ui, sans-serif"},
        "paper_bgcolor": "paper",
        "plot_bgcolor": "paper",
        "hoverlabel": {"align": "left", "bgcolor": "soft", "bordercolor": "line", "font": {"color": "ink"}},
        "hovermode": "closest",
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "font": {"size": 11}},
        "modebar": {"bgcolor": "paper", "color": "quiet", "activecolor": "accent"},
        "dragmode": "zoom",
        "xaxis": x,
        "yaxis": y,
    }


def frontier_layout(report: ParetoReport) -> Spec:
    """Return the layout of the frontier figure, without its axes."""
    pair = axes_pairs(report)[0]
    return layout(560, *(axis_layout(report, objective) for objective in pair))


def parallel_chart(report: ParetoReport) -> Spec:
    """Return the frontier in parallel coordinates; see `parallel_rows`."""
    axes, values, labels = parallel_axes(report), parallel_rows(report), row_labels(report)
    numbers = series_numbers(report, report.frontier)
    places = [*range(len(axes))]
    traces = []
    for i in report.frontier["knee"].argsort(kind="stable"):  # knees are drawn last
        is_knee = bool(report.frontier["knee"].iloc[i])
        colour, width = ("ink", 3.0) if is_knee else (series_colour(numbers[i]), 1.2)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": places,
                "y": values[i].tolist(),
                "line": {"color": colour, "width": width},
                "opacity": 1.0 if is_knee else 0.55,
                "name": plotly(labels[i].partition("\n")[0]),
                "hoverinfo": "text",
                "hovertext": plotly(*labels[i].split("\n")),
                "showlegend": False,
            }
        )
    names = [plotly(axis.bottom, *_words_in_lines(axis.label)) for axis in axes]
    x = {**_axis(""), "tickmode": "array", "tickvals": places, "ticktext": names, "fixedrange": True}
    x |= {"range": [-0.4, len(axes) - 0.6], "gridcolor": "quiet", "tickfont": {"color": "ink", "size": 11}}
    x["ticklabeloverflow"] = "allow"
    y = {**_axis(""), "showticklabels": False, "showgrid": False, "range": [-0.02, 1.02], "fixedrange": True}
    notes = [
        {"x": i, "y": 1, "text": plotly(axis.top), "showarrow": False, "yanchor": "bottom", "yshift": 4 + 13 * (i % 2)}
        for i, axis in enumerate(axes)
    ]
    frame = layout(380, x, y) | {"margin": {"l": 24, "r": 24, "t": 40, "b": 50}}
    return {"data": traces, "layout": {**frame, "annotations": notes}}


def _words_in_lines(label: str) -> list[str]:
    """Return a label in lines of a word or two, which fit between the axes of a phone."""
    lines = [""]
    for word in label.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) > 8:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def progress_chart(report: ParetoReport, of_what: str) -> Spec:
    """Return the hypervolume against evaluations, with a step line for each run. of_what: meaning of 100 %."""
    numbers = run_numbers(report)
    traces = []
    for i, (run, table) in enumerate(of_runs(report.progress)):
        shares = (100 * table["share"]).tolist()
        kept = [k for k in range(len(shares)) if k in (0, len(shares) - 1) or shares[k] != shares[k - 1]]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [int(table["evaluations"].iloc[k]) for k in kept],
                "y": [shares[k] for k in kept],
                "line": {
                    "shape": "hv",
                    "color": series_colour(numbers.get(run)),
                    "dash": DASHES[i % len(DASHES)].plotly,
                },
                "name": _legend(run),
                "showlegend": bool(run),
            }
        )
    y = _axis(f"hypervolume, % of {of_what}") | {"range": [0, 103]}
    return {"data": traces, "layout": layout(340, _axis("evaluations") | {"rangemode": "tozero"}, y)}


def training_chart(curves: Sequence[Curve]) -> Spec:
    """Return losses against steps by role: lines for training losses, points for held-out losses."""
    roles = list(dict.fromkeys(curve.role for curve in curves))
    traces = []
    for curve in curves:
        number = roles.index(curve.role)
        colour = series_colour(number)
        style: Spec = {"mode": "lines", "line": {"color": colour, "dash": DASHES[number % len(DASHES)].plotly}}
        if curve.held_out:
            style = {"mode": "markers", "marker": {"color": colour, "symbol": series_marker(number).plotly, "size": 8}}
        name = _legend(f"{curve.role}, {'held out' if curve.held_out else 'trained on'}")
        traces.append({"type": "scatter", "x": list(curve.steps), "y": list(curve.losses), "name": name, **style})
    return {"data": traces, "layout": layout(340, _axis("step"), _axis("loss; lower is better"))}


def check_charts(check: ProxyCheck) -> list[Spec]:
    """Return a figure for each panel of a proxy validation: Kendall's tau of its measures; see `panels`."""
    return [_panel_chart(panel) for panel in panels(check.ranking, check.labels)]


def _panel_chart(panel: Panel) -> Spec:
    labels = [plotly(label) for label in panel.rows["label"]]
    traces: list[Spec] = []
    for name, colour, rows in (
        ("measure, within bands", "c0", panel.rows[~panel.rows["is_flops"]]),
        ("FLOPs, within bands", "baseline", panel.rows[panel.rows["is_flops"]]),
    ):
        ends = {
            "array": (rows["kendall_high"] - rows["kendall"]).tolist(),
            "arrayminus": (rows["kendall"] - rows["kendall_low"]).tolist(),
            "color": colour,
        }
        traces.append(
            {
                **_taus(rows, "kendall"),
                "error_x": {"type": "data", "symmetric": False, **ends},
                "marker": {"color": colour, "size": 8},
                "name": name,
            }
        )
    hollow = {"color": "quiet", "symbol": "circle-open", "size": 8}
    traces.append({**_taus(panel.rows, "over_all"), "marker": hollow, "name": "over all subnets"})
    y = {**_axis(""), "categoryorder": "array", "categoryarray": labels[::-1]}
    x = {**_axis("Kendall's tau, 95 % interval; higher is better"), "range": [-1.05, 1.05], "zeroline": True}
    return {"data": traces, "layout": layout(150 + 24 * len(labels), x, y)}


def _taus(rows: pd.DataFrame, column: str) -> Spec:
    labels = [plotly(label) for label in rows["label"]]
    return {"type": "scatter", "mode": "markers", "x": rows[column].tolist(), "y": labels}


def published_chart(published: pd.DataFrame) -> Spec:
    """Return average GLUE scores against FLOPs of published models."""
    styles = {
        "teacher": (TEACHER_MARKER, "ink"),
        "hand-designed": (BASELINE_MARKERS[0], "baseline"),
        "AutoDistil": (SERIES_MARKERS[0], "c0"),
    }
    traces = []
    for family, (marker, colour) in styles.items():
        rows = published[published["family"] == family]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": (1e9 * rows["flops_g"]).tolist(),
                "y": rows["average"].tolist(),
                "marker": {"symbol": marker.plotly, "color": colour, "size": 10},
                "name": family,
                "hoverinfo": "text",
                "hovertext": [
                    plotly(str(row["model"]), f"{row['flops_g']:g}G FLOPs", f"average {row['average']:g}")
                    for row in rows.to_dict("records")
                ],
            }
        )
    x = {**_axis("FLOPs (multiply-adds, 128 tokens, batch 1);<br>lower is better"), "type": "log", "tickformat": "~s"}
    x |= {"tickvals": [3e8, 1e9, 3e9, 1e10], "range": [8.3, 10.2]}
    y = _axis("average of seven GLUE dev scores (published);<br>higher is better")
    return {"data": traces, "layout": layout(380, x, y)}


def size_columns(report: ParetoReport) -> list[str]:
    """Return the sizes by which subnets can be coloured."""
    return varying_sizes(report.evaluations)
