"""Escaping of free text (names, labels, units, notes), with a function or class for each renderer."""

from __future__ import annotations

import re
import warnings
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_LIGATURES = re.compile(r"-(?=-)|'(?=')|,(?=,)|(?<=[?!])(?=\\textasciigrave)")
"""Pairs of letters that LaTeX would join into another character."""
_MARKDOWN = re.compile(r"([\\|<>*_`\[\]~$&])")
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # line separators and controls of the text direction
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # lone surrogates, and code points without a character
)
_LONGEST_LINE = 100
"""Greatest number of letters of a line in a figure."""
_COSMETIC = (r"Glyph \d+", "Matplotlib currently does not support", "constrained_layout not applied")
"""Beginnings of matplotlib's warnings about letters missing from its fonts, and about texts that leave little room."""


def visible(text: object, keep: str = "") -> str:
    r"""Return text with escapes such as `\x07` for control characters, lone surrogates and other invisible letters.

    keep: control characters that are not escaped.
    """

    def escaped(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else match[0].encode("unicode_escape").decode()

    return _UNSEEN.sub(escaped, str(text))


def one_line(text: object) -> str:
    """Return text in one line, with each run of white space as one space."""
    return visible(" ".join(str(text).split()))


def markdown(text: object) -> str:
    """Return text escaped for a cell or paragraph of Markdown."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def without_markdown(text: str) -> str:
    """Return a paragraph of this package as plain text, without backticks and the escapes of `markdown`."""
    return re.sub(r"\\(.)|`", lambda match: match[1] or "", text)


def markdown_code(text: object) -> str:
    """Return text as inline code of Markdown, within as many backticks as it needs."""
    words = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", words)), default=0))
    pad = " " if words.startswith("`") or words.endswith("`") else ""
    return f"{fence}{pad}{words}{pad}{fence}".replace("|", r"\|")


def latex(text: object) -> str:
    """Return text escaped for LaTeX."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in one_line(text))
    return _LIGATURES.sub(lambda match: f"{match[0]}{{}}", escaped)


def plotly(*lines: str) -> str:
    """Return lines escaped for plotly, which interprets some HTML and formulas between dollar signs."""
    escaped = (visible(line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for line in lines)
    return "<br>".join(line.replace('"', "&quot;").replace("'", "&#x27;").replace("$", "&#36;") for line in escaped)


def legend_name(text: str) -> str:
    """Return text as a label for a legend of matplotlib, which omits labels that begin with `_`."""
    return f" {text}" if text.startswith("_") else text


class PlainFigure(Figure):
    """Figure with literal texts: `$` begins no formula, and long lines are cut."""

    def draw(self, renderer: Any) -> None:
        """Draw the figure; see `Figure.draw`."""
        for text in self.findobj(Text):
            assert isinstance(text, Text)
            text.set_parse_math(False)
            if words := text.get_text():
                lines = (visible(line) for line in words.split("\n"))
                cut = (line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..." for line in lines)
                if (shown := "\n".join(cut)) != words:
                    text.set_text(shown)
        with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            for beginning in _COSMETIC:
                warnings.filterwarnings("ignore", beginning)
            super().draw(renderer)
