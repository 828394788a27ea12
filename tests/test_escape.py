"""Free words in each renderer: any text goes through, comes back literally, and starts nothing."""

import ast
import html
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.text import Text

from autodistil_search.base.progress import ConsoleReporter, plain_console
from autodistil_search.exporting.model_card import Card, ObjectiveValue
from autodistil_search.nas import baselines
from autodistil_search.nas.baselines import Baseline
from autodistil_search.nas.engine_comparison import COLUMNS
from autodistil_search.nas.evaluation import Evaluation
from autodistil_search.nas.objectives import FLOPS, Objective
from autodistil_search.report.data import baseline_table, pareto_report
from autodistil_search.report.escape import (
    PlainFigure,
    latex,
    markdown,
    markdown_code,
    one_line,
    plotly,
    visible,
    without_markdown,
)
from autodistil_search.report.figures import frontier_figure, progress_figure
from autodistil_search.report.findings import remark
from autodistil_search.report.html import render_html
from autodistil_search.report.papers import latex_table, markdown_table, write_for_papers
from autodistil_search.report.training_figure import training_figure
from autodistil_search.report.writing import write_report
from autodistil_search.spaces.subnet import Subnet

HOSTILE = [
    "US$ per 1M requests, 1 core at $0.04/h",
    "price in $ (spot, 5% off) $ per 1M requests_",
    r"$\frac{$ \undefined ^_{",
    "a | b ` c `` d *e* _f_ [g](h) <i> & &amp; ~~j~~ \\k \\| #l",
    "[bold red]rich[/] [/nothing] :smile: \\[x]",
    "</script><script>alert(1)</script><!-- -->",
    "two\nlines\r\nand\ttabs",
    "\x00\x07\x1b[31m\x7f\x85\u2028",
    "שלום עולם مرحبا",
    "right \u202eto left",
    "😀 🇨🇭 e\u0301 \u200b \ufffd 漢字",
    "_begins with an underscore",
    "=1+1,\"quoted\",'single',{{ jinja }},{% raw %},%s,{0}",
    "- -- --- '' ,, ?` !`",
    "x" * 5000,
    "",
    " ",
]
TEXTS = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=60), st.text("$\\|`*_<>&[]{}^%#~-'\n\t\x00é😀א", max_size=30)
)
few = settings(deadline=None, max_examples=150)


@few
@given(TEXTS)
def test_markdown_shows_a_cell_and_a_code_literally(text):
    shown = one_line(text).strip()
    table = f"| h |\n| --- |\n| a {markdown(text)} z |\n| {markdown_code('a' + text)} |\n"
    parser = MarkdownIt("commonmark").enable("table").enable("strikethrough")
    rendered = parser.render(table)
    cells = re.findall(r"<td>(.*?)</td>", rendered, flags=re.S)
    assert html.unescape(cells[0]) == f"a {shown} z"
    code = re.fullmatch("<code>(.*)</code>", cells[1], flags=re.S)
    assert code is not None
    assert html.unescape(code[1]).strip() == one_line("a" + text)
    assert without_markdown(markdown(text)) == one_line(text)


@few
@given(TEXTS)
def test_latex_has_no_letter_that_starts_something(text):
    found = latex(text)
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textasciigrave": "`"}
    names |= {"textless": "<", "textgreater": ">", "textbar": "|"}
    back = re.sub(
        r"\\([a-z]+)\{\}|\\([&%$#_{}])|\{\}", lambda match: names[match[1]] if match[1] else match[2] or "", found
    )
    assert back == one_line(text)
    left = re.sub(r"\\[a-z]+\{\}|\\[&%$#_{}]|\{\}", "", found)
    assert not set(left) & set("\\&%$#_{}~^<>|`")
    assert not re.search("--|''|,,", found)


@few
@given(TEXTS)
def test_plotly_gets_no_markup_and_no_formula(text):
    found = plotly(text)
    assert "$" not in found
    assert "<" not in found
    assert html.unescape(found) == visible(text)


@few
@given(TEXTS)
def test_a_console_prints_text_as_it_is(text):
    file = io.StringIO()
    console = plain_console(file=file, width=10_000)
    console.print(visible(text), highlight=False, soft_wrap=True)
    ConsoleReporter(console).say(visible(text))
    assert file.getvalue() == 2 * f"{visible(text)}\n"


def test_a_title_of_a_training_with_half_a_formula_is_drawn(tmp_path):
    training = pd.DataFrame({"step": [1, 2], "role": ["largest"] * 2, "loss": [2.0, 1.0]})
    figure = training_figure(training, training.iloc[1:], "SuperLM $\\frac{x}{$")
    figure.savefig(tmp_path / "training.png")  # formulas that cannot be read would raise here
    assert (tmp_path / "training.png").stat().st_size > 1000


@pytest.mark.parametrize("text", HOSTILE)
def test_a_figure_shows_any_text_without_a_warning(text):
    figure = PlainFigure(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=text, ylabel=text, title=text)
    axes.barh([f"1{text}", f"2{text}"], [1, 2], label=f"in a legend {text}")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    figure.savefig(io.BytesIO(), format="svg")
    texts = [found for found in figure.findobj(Text) if found.get_text()]
    assert not any(found.get_parse_math() for found in texts)
    if len(text) < 60 and text.isascii() and text.isprintable():
        assert axes.get_xlabel() == text


class Words(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.said.append(data)


def hostile_report(text):
    mine = Objective("mine", f"label {text}", f"unit {text}", "minimize")
    evaluations = [
        Evaluation("toy", Subnet(2 + i, 32, 64, 4, 8), {"mine": float(i + 1), "flops": 9.0 - i}) for i in range(3)
    ]
    shape = Baseline(f"{text} B", Subnet(4, 312, 1200, 12, 26), "distilled alone", {"mine": 2.0, "flops": 4.0})
    return pareto_report(
        title=f"title {text}",
        evaluations=evaluations,
        objectives=[mine, FLOPS],
        columns=[mine, FLOPS],
        constraints=[],
        box={"mine": [0.0, 4.0], "flops": [0.0, 10.0]},
        baselines=baseline_table([shape], [mine, FLOPS]),
        published=baselines.published(),
        engines=pd.DataFrame(columns=COLUMNS),
        exact=False,
        conditions={"text": f"condition {text}"},
        findings=[remark(f"note {text}")],
    )


@settings(deadline=None, max_examples=25)
@given(TEXTS)
def test_the_page_says_any_text_and_nothing_of_it_becomes_a_tag(text):
    page = render_html(hostile_report(text))
    page.encode()
    plain = render_html(hostile_report("plain"))
    found, expected = Words(page), Words(plain)
    assert found.tags == expected.tags
    shown = visible(text, keep="\n\t").replace("\r", "\\r")
    assert f"note {shown}" in found.said
    assert f"condition {shown}" in found.said
    data = next(json.loads(said) for said in found.said if said.startswith("{"))
    assert data["costs"][0]["label"] == f"label {text}"
    names = [trace["name"] for trace in data["overlays"]["flops mine"]]
    assert not [name for name in names if "<" in name.replace("<br>", "")]


@pytest.mark.parametrize("text", HOSTILE)
def test_figures_and_tables_for_papers_are_written_whatever_names_hold(text, tmp_path, monkeypatch):
    report = hostile_report(text)
    for figure in (frontier_figure(report), progress_figure(report)):
        figure.savefig(io.BytesIO(), format="png", dpi=20)
    (legend,) = frontier_figure(report).legends
    assert len(legend.get_texts()) == 4  # scored, frontier, knee and the baseline, whatever it begins with
    monkeypatch.setattr("autodistil_search.report.papers.save_for_papers", lambda *_: [])
    write_for_papers(replace(report), tmp_path)
    assert (tmp_path / "tables.tex").read_text(encoding="utf-8").count("\\begin{table}") == 2
    table = pd.DataFrame({"name": [text], "value": np.array([1.0])})
    assert len(markdown_table(table, "caption").splitlines()) == 5
    assert latex_table(table, "caption").count("\\\\\n") == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_tables_come_back_from_csv_as_they_are_shown(text, tmp_path, monkeypatch):
    monkeypatch.setattr("autodistil_search.report.writing.write_page", lambda *_: None)
    report = hostile_report(text)
    write_report(report, tmp_path)
    back = pd.read_csv(tmp_path / "baselines.csv")
    assert back["name"].to_list() == [visible(f"{text} B", keep="\n\t")]
    pd.testing.assert_frame_equal(back.drop(columns="name"), report.baselines.drop(columns="name"))


@few
@given(TEXTS)
def test_a_card_keeps_its_tables_and_its_code(text):
    card = Card(
        name=f"out {text}", student="3x48", labels=0, own_file=True, variants=[], has_teacher=False, onnx=True, load="",
        notes=[], vectors=text, facts=[(f"what {text}", f"how {text}")], base_model=text or None, licence=text or None,
        objectives=[ObjectiveValue(f"label {text}", "mine", "1.0", f"unit {text}", "lower")],
    )  # fmt: skip
    words = card.words
    for cell in (f"| what {markdown(text)}".rstrip() + " |", f"| label {markdown(text)}".rstrip() + " ("):
        assert cell in words.replace("  ", " ")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", words, flags=re.S | re.M))
    literals = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert {f"out {text}", f"out {text}/model.onnx"} <= literals
