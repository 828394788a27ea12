"""What is shown while a long piece of work goes on."""

import io

import pytest
from rich.console import Console

from autodistil_search.base import progress
from autodistil_search.base.progress import ConsoleReporter, Reporter


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def written(terminal: bool, width: int = 140) -> tuple[ConsoleReporter, io.StringIO]:
    file = io.StringIO()
    return ConsoleReporter(Console(file=file, force_terminal=terminal, width=width)), file


def test_a_log_gets_a_line_now_and_then_with_rate_and_remaining_time(monkeypatch):
    clock = Clock(monkeypatch)
    reporter, file = written(terminal=False)
    with reporter.bar("training", "steps", 100) as bar:
        bar.skip(40)
        for _ in range(20):
            clock.now += 1.0
            bar.advance("loss 1.5")
    assert file.getvalue().splitlines() == [
        "training: 55/100 steps, 1.00 steps/s, 0:45 left, loss 1.5",
        "training: 60/100 steps, 1.00 steps/s, took 20.0 s, loss 1.5",
    ]


def test_a_terminal_gets_a_bar_with_count_rate_and_note():
    reporter, file = written(terminal=True)
    with reporter.bar("training", "steps", 4) as bar:
        bar.skip(2)
        bar.advance("loss 1.5")
    shown = file.getvalue()
    assert all(part in shown for part in ("training", "3/4", "steps/s", "0:00 left", "loss 1.5"))


@pytest.mark.parametrize("width", [80, 140])
def test_count_rate_and_time_are_whole_at_any_width_and_a_long_note_is_cut(width, monkeypatch):
    clock = Clock(monkeypatch)
    reporter, file = written(terminal=True, width=width)
    note = "loss 1.5300, lr 0.00123, gradient norm 12.3, largest 1.4321, smallest 1.9876 and more"
    with reporter.bar("training SuperLM shallow", "steps", 20000) as bar:
        bar.skip(12000)
        clock.now += 100
        bar.advance(note)
    assert "12,001/20,000 0.01 steps/s 222:11:40 left" in file.getvalue()
    assert (note in file.getvalue()) == (width > 100)


def test_a_task_of_unknown_length_shows_its_count_and_the_time_that_has_passed(monkeypatch):
    clock = Clock(monkeypatch)
    reporter, file = written(terminal=True)
    with reporter.bar("tokenizing", "documents", None) as bar:
        clock.now += 75
        bar.advance_by(1500)
    assert "1,500 20.00 documents/s 1:15 so far" in file.getvalue()


def test_in_python_nothing_is_shown(capsys):
    with Reporter().bar("training", "steps", 2) as bar:
        bar.advance()
        bar.skip(1)
    Reporter().say("something")
    assert capsys.readouterr().out == ""
