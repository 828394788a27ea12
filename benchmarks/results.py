"""Reference results on real text and tasks: SuperLM, frontier, baselines, students, fine-tuned scores, ranking.

    python benchmarks/results.py --out FOLDER
    python benchmarks/results.py --data DATA --tasks SST-2,CoLA:9000:1e-4 --out FOLDER

The first command needs the extras `quickstart` and `wiki` only. DATA holds `wiki/train.txt.gz` (paragraphs, one a line)
and GLUE's files in `glue/SST-2` and so on; the task `phrases` is SST-2 with 10,288 rows to measure on (phrases.py).
Every step is a command of the product, printed before it runs. Finished steps are not repeated, so the same command
continues a stopped run. At the end `FOLDER/results.md` has the tables that docs/results.md shows.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from autodistil_search import load_run
from autodistil_search.base.device import choose_device
from autodistil_search.base.files import cache_folder
from autodistil_search.base.user_input import PACKAGED
from autodistil_search.nas.objectives import Objective
from autodistil_search.nas.sentence_similarity import PASSAGES, SentenceSimilarity
from autodistil_search.report.data import against_frontier
from autodistil_search.runs.finished_run import Run
from autodistil_search.runs.run_folder import model_folder
from autodistil_search.tasks.metrics import METRICS
from autodistil_search.teachers.loading import load_as_student, load_teacher
from autodistil_search.text.token_store import load_corpus

PHRASES = "phrases"
STUDENT, BASELINE, TEACHER = "student of the frontier", "baseline", "teacher"
DRAWN = "subnet at random"
NEAR = 0.05
"""How far the FLOPs of a subnet at random may be from those of a student, as a share."""


@dataclass(frozen=True)
class Model:
    """What is fine-tuned: its name in tables, what it is, where it lies and its multiply-adds at 128 tokens."""

    name: str
    kind: str
    source: str
    flops: float
    params: float

    @property
    def slug(self) -> str:
        """Its name for folders."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower()).strip("-")


@dataclass(frozen=True)
class Pipeline:
    """All steps, in their order, with what they are told."""

    arguments: argparse.Namespace

    @property
    def out(self) -> Path:
        """Where everything goes."""
        return Path(self.arguments.out)

    def command(self, *words: str, log: str, threads: int | None = None) -> None:
        """Run a command of the product; its output goes to a log.

        Raises:
            RuntimeError: if it fails.
        """
        print(f"autodistil-search {shlex.join(words)}\n", end="", flush=True)  # at once: others print, too
        environment = dict(os.environ)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / f"{log}.log").open("a") as file:
            done = subprocess.run(
                [sys.executable, "-m", "autodistil_search", *words], stdout=file, stderr=file, env=environment
            )
        if done.returncode:
            raise RuntimeError(f"{shlex.join(words)} ended with {done.returncode}; see {self.out / log}.log")

    def train(self) -> None:
        """The SuperLM."""
        given = self.arguments
        text = PACKAGED if given.data is None else str(given.data / "wiki" / "train.txt.gz")
        sizes = ["--steps", str(given.steps), "--batch-size", str(given.batch_size)]
        sizes += [] if given.lr is None else ["--lr", str(given.lr)]
        sizes += ["--hidden", str(given.hidden)]
        out = str(self.out / "superlm")
        self.command("train", "--space", given.space, "--text", text, *sizes, "--out", out, log="train")

    def search(self) -> Run:
        """The whole space, and the baselines."""
        out = self.out / "run"
        if not (out / "summary.json").exists():
            scored = ["--engine", "exhaustive", "--evaluations", "256", "--baselines", self.arguments.baselines]
            superlm = str(self.out / "superlm")
            space = self.arguments.space
            self.command("search", "--space", space, "--superlm", superlm, *scored, "--out", str(out), log="search")
        return load_run(out)

    def distil(self, run: Run) -> list[Model]:
        """The chosen students, trained further."""
        rows = [run.pick(pick) for pick in self.arguments.picks.split(",")]
        numbers = dict.fromkeys(1 + run.frontier.index.to_list().index(row.name) for row in rows)
        return [self._distilled(run, number, self.out / "students" / str(number), STUDENT) for number in numbers]

    def draw(self, run: Run, students: Sequence[Model]) -> list[Model]:
        """Two subnets that chance chose for each student, a little cheaper and a little dearer, trained further."""
        found = dict[str, Model]()
        for student in students:
            least, most = (1 - NEAR) * student.flops, (1 + NEAR) * student.flops
            for side, low, high in (("cheaper", least, student.flops - 1), ("dearer", student.flops + 1, most)):
                if run.evaluations["flops"].between(low, high).any():
                    model = self._drawn(self.out / "drawn" / f"{student.slug}-{side}", low, high)
                    found.setdefault(model.name, model)  # chance may choose one again
        return list(found.values())

    def _drawn(self, out: Path, low: float, high: float) -> Model:
        if not (out / "summary.json").exists():
            near = ["--constraint", f"flops>={low:.0f}", "--constraint", f"flops<={high:.0f}"]
            chance = ["--engine", "random", "--evaluations", "1", "--baselines", "none"]
            where = ["--space", self.arguments.space, "--superlm", str(self.out / "superlm"), "--out", str(out)]
            self.command("search", *where, *chance, *near, log="drawn")
        return self._distilled(load_run(out), 1, out.with_name(f"{out.name}-student"), DRAWN)

    def _distilled(self, run: Run, number: int, out: Path, kind: str) -> Model:
        """A row of a frontier, counted from 1, trained further."""
        steps = ["--steps", str(self.arguments.distil_steps)]
        steps += [] if self.arguments.distil_lr is None else ["--lr", str(self.arguments.distil_lr)]
        if not (out / "distil.json").exists():
            self.command("distil", str(run.folder), "--pick", str(number), *steps, "--out", str(out), log="distil")
        row = run.frontier.iloc[number - 1]
        name = f"{row['layers']}x{row['hidden_size']}, {row['heads']} heads, ratio {row['mlp_ratio']:g}"
        return Model(name, kind, str(out), row["flops"], row["params"])

    def baselines(self, run: Run) -> list[Model]:
        """Those whose weights are kept; a copy of the teacher is the teacher."""
        kept = run.baselines[run.baselines["weights"] != "not kept"]
        return [
            Model(f"{row['name']} ({row['how']})", BASELINE, row["weights"], row["flops"], row["params"])
            for row in kept.to_dict("records")
        ]

    def finetune(self, models: Sequence[Model]) -> pd.DataFrame:
        """A row for each model and task: mean and spread of GLUE's metric on dev."""
        given = self.arguments
        asked = [[*task.split(":"), "", ""][:3] for task in given.tasks.split(",")]
        if any(task == PHRASES for task, *_ in asked):
            made = ["--data", str(given.data), "--out", str(self.out / PHRASES)]
            subprocess.run([sys.executable, str(Path(__file__).with_name("phrases.py")), *made], check=True)
        told = [(task, rows or str(given.rows), lr or given.finetune_lr) for task, rows, lr in asked]
        jobs = [(model, *each) for each in told for model in models]
        with ThreadPoolExecutor(given.jobs) as pool:
            found = list(pool.map(lambda job: self._finetuned(*job), jobs))
        return pd.DataFrame(found)

    def _finetuned(self, model: Model, task: str, rows: str, lr: str) -> dict[str, object]:
        given, out = self.arguments, self.out / "tuned" / f"{model.slug}-{task}"
        if not (out / "summary.json").exists():
            settings = {
                "task": self._task(task),
                "lr": lr,
                "epochs": str(given.epochs),
                "train-rows": rows,
                "seeds": str(given.seeds),
                "out": str(out),
            }
            flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
            self.command("finetune", model.source, *flags, log=f"tuned-{model.slug}-{task}", threads=1)
        summary = json.loads((out / "summary.json").read_text())
        metric, found = next(iter(summary["metrics"].items()))
        return {
            "model": model.name,
            "kind": model.kind,
            "flops": model.flops,
            "params": model.params,
            "task": task,
            "metric": metric,
            **found,
            "lr": summary["lr"],
        }

    def _task(self, name: str) -> str:
        """Return the `--task` of a name: SST-2 with more rows, a folder of GLUE's files, or a task of the package."""
        if name == PHRASES:
            return str(self.out / PHRASES / "SST-2")
        return name if self.arguments.data is None else str(self.arguments.data / "glue" / name)

    def similarities(self, run: Run, models: Sequence[Model]) -> pd.DataFrame:
        """Return the rank correlation of each model's sentence similarities with the teacher's, without labels."""
        teacher, device = load_teacher(), choose_device("cpu", "fp32")
        held_out = load_corpus(run.config.texts, teacher.tokenizer, cache_folder()).blocks(128)[1]
        similarity = SentenceSimilarity(teacher, held_out.spread(PASSAGES), device)
        rows: list[dict[str, object]] = [
            {"kind": TEACHER, "model": "mean of the teacher's word vectors", "rho": similarity.of_word_vectors()}
        ]
        for model in models:
            source = model.source if model.kind == TEACHER else str(model_folder(Path(model.source)))
            rho = similarity.of(load_as_student(source, teacher))
            rows.append({"kind": model.kind, "model": model.name, "flops": model.flops, "rho": rho})
        return pd.DataFrame(rows).sort_values("flops")

    def validate(self, run: Run) -> Path:
        """How well the proxy ranks."""
        out, given = self.out / "validation", self.arguments
        if not (out / "summary.json").exists():
            lr = given.finetune_lr.split(",")[0]
            drawn = ["--subnets", str(given.subnets), "--alone-steps", str(given.alone_steps)]
            alone = ["--alone-lr", str(given.lr)] if given.alone_steps and given.lr is not None else []
            asked = ["--task", self._task(given.tasks.partition(",")[0].partition(":")[0]), "--lr", lr]
            if given.data is not None:
                asked += ["--cosine", str(given.data / "glue" / "STS-B")]
            self.command("validate-proxy", str(run.folder), *drawn, *alone, *asked, "--out", str(out), log="validation")
        return out


def compared(scores: pd.DataFrame) -> Iterator[str]:
    """What the students have at the score and at the FLOPs of each other, by interpolation between students."""
    for task, rows in scores.groupby("task", sort=False):
        metric = str(rows["metric"].iloc[0])
        objective = Objective(metric, METRICS[metric].label, "share", "maximize", is_proxy=True)
        named = rows.rename(columns={"mean": metric, "model": "name"}).assign(how=rows["kind"], weights="")
        students = named[named["kind"] == STUDENT]
        for line in against_frontier(students, named[named["kind"].isin([BASELINE, DRAWN])], objective):
            yield f"- {task}: {line}"


def tables(run: Run, scores: pd.DataFrame, vectors: pd.DataFrame, validation: Path | None) -> str:
    """Everything measured, in Markdown."""
    lines = ["## Frontier", "", run.frontier.to_markdown(index=False), "", "## Baselines, by the proxy", ""]
    lines += [run.baselines.drop(columns=["source", "weights"]).to_markdown(index=False), ""]
    lines += [f"- {note}" for note in run.summary["notes"]]
    means = zip(scores["mean"], scores["standard_deviation"], strict=True)
    cells = [f"{100 * mean:.1f} ± {100 * spread:.1f}" for mean, spread in means]
    titles = [f"{task} ({metric})" for task, metric in zip(scores["task"], scores["metric"], strict=True)]
    wide = scores.assign(cells=cells, titles=titles).pivot_table(
        index=["kind", "model", "flops", "params"], columns="titles", values="cells", aggfunc="first", sort=False
    )
    lines += ["", "## Fine-tuned", "", wide.reset_index().sort_values("flops").to_markdown(index=False), ""]
    lines += compared(scores)
    lines += ["", "## Sentence similarities, rank correlation with the teacher", "", vectors.to_markdown(index=False)]
    if validation is not None:
        lines += [
            "",
            "## How the proxy ranks",
            "",
            pd.read_csv(validation / "ranking.csv").to_markdown(index=False),
            "",
        ]
        lines += [f"- {note}" for note in json.loads((validation / "summary.json").read_text())["notes"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has not been run yet, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with wiki/ and glue/; packaged text and tasks if not given")
    parser.add_argument("--out", default="runs/results", help="folder for everything")
    parser.add_argument("--space", default="shallow", help="a packaged one, or a YAML file")
    parser.add_argument("--steps", type=int, default=600, help="of the SuperLM and of each baseline")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, help="the default of the space if not given")
    parser.add_argument(
        "--hidden", type=float, default=1.0, help="weight of the last hidden states; 0: relations alone"
    )
    parser.add_argument("--baselines", default="truncated,tinybert,minilm")
    parser.add_argument(
        "--drawn", action=argparse.BooleanOptionalAction, default=False, help="subnets at random beside each student"
    )
    parser.add_argument("--distil-steps", type=int, default=100, help="of each student after the search")
    parser.add_argument("--distil-lr", type=float, help="a quarter of the search's if not given")
    parser.add_argument("--picks", default="flops<=300M,flops<=450M,flops<=600M", help="students, by commas")
    tasks = "tasks of the package, or with --data folders of GLUE and `phrases`; NAME:ROWS:LR for other rows or rates"
    parser.add_argument("--tasks", default="topic", help=tasks)
    parser.add_argument("--finetune-lr", default="3e-4")
    parser.add_argument("--rows", type=int, default=3000, help="labelled rows to train on, at most")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subnets", type=int, default=0, help="of the validation; 0 for none")
    parser.add_argument(
        "--alone-steps", type=int, default=0, help="that each of them is trained alone; 0 to measure it as it is"
    )
    parser.add_argument("--jobs", type=int, default=2, help="fine-tunings side by side, a thread each")
    pipeline = Pipeline(parser.parse_args())
    pipeline.train()
    run = pipeline.search()
    students = pipeline.distil(run)
    drawn = pipeline.draw(run, students) if pipeline.arguments.drawn else []
    models = [*students, *drawn, *pipeline.baselines(run)]
    teacher = run.baselines[run.baselines["how"].str.startswith("copy")]
    if len(teacher):  # its own shape is among the baselines, so what it costs is known
        models.append(Model("teacher", TEACHER, PACKAGED, teacher["flops"].iloc[0], teacher["params"].iloc[0]))
    scores = pipeline.finetune(models)
    scores.to_csv(pipeline.out / "scores.csv", index=False)
    vectors = pipeline.similarities(run, models)
    vectors.to_csv(pipeline.out / "vectors.csv", index=False)
    validation = pipeline.validate(run) if pipeline.arguments.subnets else None
    (pipeline.out / "results.md").write_text(tables(run, scores, vectors, validation))
    print(f"{pipeline.out / 'results.md'}")


if __name__ == "__main__":
    main()
