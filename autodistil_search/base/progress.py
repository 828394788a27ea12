"""Progress of long tasks: a bar in a terminal, a line every few seconds in a log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


def plain_console(**options: Any) -> Console:
    """Return a console that prints text literally: `[bold]` is no style and `:smile:` no picture.

    Args:
        options: Options of `rich.console.Console`.
    """
    return Console(markup=False, emoji=False, **options)


class Bar(Protocol):
    """Progress of one task."""

    def advance(self, note: str = "") -> None:
        """Count one finished unit; `note` describes its result."""

    def advance_by(self, units: int) -> None:
        """Count `units` more finished units."""

    def skip(self, units: int) -> None:
        """Count `units` that were finished in an earlier run; they do not enter the rate."""


class Reporter:
    """Reporter without output."""

    @contextmanager
    def bar(self, title: str, unit: str, total: int | None) -> Iterator[Bar]:
        """Open a bar for `total` units, or for an unknown number of units if `total` is None."""
        yield _Silent()

    def say(self, message: str) -> None:
        """Show one line to the user."""

    def warn(self, message: str) -> None:
        """Show one line about a doubtful result; by default as `say` does."""
        self.say(message)


class _Silent:
    def advance(self, note: str = "") -> None:
        pass

    def advance_by(self, units: int) -> None:
        pass

    def skip(self, units: int) -> None:
        pass


class ConsoleReporter(Reporter):
    """Reporter with a bar in a terminal and a line every few seconds in a log, both with rate and remaining time."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, message: str) -> None:
        """Print one line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, unit: str, total: int | None) -> Iterator[Bar]:
        """Open a bar in a terminal, or write lines elsewhere."""
        if not self._console.is_terminal:
            line = Line(self, title, unit, total)
            yield line
            line.close()
            return
        with _Bars(console=self._console) as progress:
            yield _Terminal(progress, title, unit, total)


class _Bars(Progress):
    """Bar with count, rate and time, and a line for the note. In a narrow terminal, only the bar itself shrinks."""

    @classmethod
    def get_default_columns(cls) -> tuple[ProgressColumn, ...]:
        return (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=2)),
            _PaceColumn("count"),
            _PaceColumn("rate"),
            _PaceColumn("time"),
        )

    def get_renderables(self) -> Iterable[Any]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if note := task.fields["note"]:
                yield Text(f"  {note}", style="dim", no_wrap=True, overflow="ellipsis")


class _PaceColumn(ProgressColumn):
    """Text of a property of the task's pace, never cut."""

    def __init__(self, name: str) -> None:
        super().__init__(table_column=Column(no_wrap=True, justify="right"))
        self._name = name

    def render(self, task: Task) -> Text:
        return Text(getattr(task.fields["pace"], self._name))


class _Pace:
    def __init__(self, unit: str, total: int | None) -> None:
        self.unit, self.total, self.done, self.skipped = unit, total, 0, 0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def _fresh(self) -> int:
        return self.done - self.skipped

    @property
    def rate(self) -> str:
        return f"{self._fresh / max(self.seconds, 1e-9):.2f} {self.unit}/s" if self._fresh else ""

    @property
    def left(self) -> str:
        if self.total is None or not self._fresh:
            return ""
        return f"{_clock((self.total - self.done) * self.seconds / self._fresh)} left"

    @property
    def time(self) -> str:
        """Return the remaining time if it is known, else the time that has passed."""
        return self.left if self.left and self.done != self.total else f"{_clock(self.seconds)} so far"

    @property
    def count(self) -> str:
        return f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"


def _clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Terminal:
    def __init__(self, progress: Progress, title: str, unit: str, total: int | None) -> None:
        self._progress, self._pace = progress, _Pace(unit, total)
        self._task = progress.add_task(title, total=total, pace=self._pace, note="")

    def advance(self, note: str = "") -> None:
        self._pace.done += 1
        self._progress.update(self._task, advance=1, note=note)

    def advance_by(self, units: int) -> None:
        self._pace.done += units
        self._progress.update(self._task, advance=units)

    def skip(self, units: int) -> None:
        self._pace.done += units
        self._pace.skipped += units
        self._progress.update(self._task, advance=units)


class Line:
    """Progress of one task as a line of text, shown every few seconds and at the end."""

    seconds_between = 15.0

    def __init__(self, reporter: Reporter, title: str, unit: str, total: int | None) -> None:
        self._reporter, self._title, self.pace = reporter, title, _Pace(unit, total)
        self._shown, self._note = time.monotonic(), ""

    def advance(self, note: str = "") -> None:
        """Count one finished unit; see `Bar`."""
        self._note = note
        self.advance_by(1)

    def advance_by(self, units: int) -> None:
        """Count `units` more finished units; see `Bar`."""
        self.pace.done += units
        if time.monotonic() - self._shown >= self.seconds_between:
            self._show(self.pace.left)

    def skip(self, units: int) -> None:
        """Count `units` that were finished in an earlier run; see `Bar`."""
        self.pace.done += units
        self.pace.skipped += units

    def close(self) -> None:
        """Show the last state; a task of unknown size that had no units is not shown."""
        if self.pace.total is None and not self.pace.done:
            return
        self._show(f"took {self.pace.seconds:.1f} s")

    def show(self, words: str) -> None:
        """Show the state in words."""
        self._reporter.say(words)

    def _show(self, time_text: str) -> None:
        pace = self.pace
        parts = [f"{self._title}: {pace.count} {pace.unit}", pace.rate, time_text, self._note]
        self.show(", ".join(part for part in parts if part))
        self._shown = time.monotonic()
