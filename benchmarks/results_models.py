"""The models of results.py: students, random subnets, baselines, half of the teacher, published models, the teacher."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from autodistil_search import load_run
from autodistil_search.base.device import choose_device
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import cache_folder, whole_folder
from autodistil_search.base.manifest import MANIFEST, lacking
from autodistil_search.base.pretrained import quiet_transformers
from autodistil_search.base.user_input import PACKAGED
from autodistil_search.nas.baselines import AS_IT_IS, COPY, TRUNCATED
from autodistil_search.nas.sentence_similarity import PASSAGES, SentenceSimilarity
from autodistil_search.runs.finished_run import Run
from autodistil_search.runs.run_folder import model_folder
from autodistil_search.runs.train import trained_config
from autodistil_search.spaces.cost import flops
from autodistil_search.spaces.search_space import load_space
from autodistil_search.teachers.families import FAMILIES, find
from autodistil_search.teachers.loading import load_as_student, load_teacher
from autodistil_search.teachers.teacher import Teacher
from autodistil_search.text.token_store import load_corpus

if TYPE_CHECKING:  # a script that is started by its path finds its neighbours by their bare names
    from benchmarks.results_costs import Commands
    from benchmarks.results_tables import BASELINE, DRAWN, HALF, PUBLISHED, STUDENT, TEACHER
else:
    from results_costs import Commands
    from results_tables import BASELINE, DRAWN, HALF, PUBLISHED, STUDENT, TEACHER

NEAR = 0.05
"""Largest difference in FLOPs between a random subnet and a student, as a share."""
SEQ_LEN = 128
"""Tokens in a block of text; the product's default."""


@dataclass(frozen=True)
class Model:
    """Model that is fine-tuned.

    Attributes:
        name: Name in tables.
        kind: Kind of model; see `results_tables`.
        source: Argument of `finetune`: a folder, a hub id or "packaged".
        flops: Multiply-adds at 128 tokens.
        params: Parameters.
        reads_as_teacher: True if the model has the teacher's vocabulary, as task distillation needs.
        space: Space of a student; empty for other models.
    """

    name: str
    kind: str
    source: str
    flops: float
    params: float
    reads_as_teacher: bool = True
    space: str = ""

    @property
    def slug(self) -> str:
        """Return the name for folders."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower()).strip("-")


@dataclass(frozen=True)
class Workshop:
    """All steps up to fine-tuning; finished steps are not repeated.

    Attributes:
        arguments: Arguments of results.py.
        commands: Runner of the commands.
        out: Folder for everything.
    """

    arguments: argparse.Namespace
    commands: Commands
    out: Path

    @property
    def superlm(self) -> Path:
        """Return the folder of the training, the given or our own."""
        return Path(self.arguments.superlm or self.out / "superlm")

    def run(self) -> Run:
        """Return the given run, or the run of our own search, whose SuperLMs are trained first."""
        given = self.arguments
        if given.run is not None:
            return load_run(given.run)
        if not (self.out / "run" / "summary.json").exists():
            if given.superlm is None:
                self._train()
            self._search()
        return load_run(self.out / "run")

    def _train(self) -> None:
        if (self.superlm / MANIFEST).exists() and not lacking(self.superlm):
            return
        given = self.arguments
        text = PACKAGED if given.data is None else str(given.data / "wiki" / "train.txt.gz")
        words = ["--space", given.space, "--teacher", given.teacher or PACKAGED, "--text", text]
        words += ["--steps", str(given.steps), "--batch-size", str(given.batch_size), "--hidden", str(given.hidden)]
        words += [] if given.lr is None else ["--lr", str(given.lr)]
        tokens = len(given.space.split(",")) * given.steps * given.batch_size * SEQ_LEN
        self.commands.run(
            ["train", *words, "--out", str(self.superlm)], "training of SuperLMs", "train", lambda: tokens
        )

    def _search(self) -> None:
        given, out = self.arguments, self.out / "run"
        words = ["--space", trained_config(self.superlm).space, "--superlm", str(self.superlm)]
        words += ["--engine", "exhaustive", "--evaluations", str(given.evaluations)]
        words += ["--baselines", given.baselines, "--out", str(out)]

        def tokens() -> int:
            run = load_run(out)
            trained = (~run.baselines["how"].isin([TRUNCATED, COPY, AS_IT_IS])).sum()
            return int(trained) * run.config.steps * run.config.batch_size * run.config.seq_len

        self.commands.run(["search", *words], "search, and training of baselines", "search", tokens)

    def students(self, run: Run) -> list[Model]:
        """Return the selected students, each trained further."""
        rows = [run.pick(pick) for pick in self.arguments.picks.split(",")]
        numbers = dict.fromkeys(1 + run.frontier.index.to_list().index(row.name) for row in rows)
        return [self._distilled(run, number, self.out / "students" / str(number), STUDENT) for number in numbers]

    def random_subnets(self, run: Run, students: Sequence[Model]) -> list[Model]:
        """Return two random subnets of each student's space, one cheaper and one more expensive, trained further.

        Their FLOPs differ by at most `NEAR` from those of the student. A side without such subnets is left out.

        Raises:
            InputError: if the run trained its SuperLMs itself, because a search for subnets needs a training.
        """
        superlm = self.arguments.superlm or run.config.superlm
        if superlm is None:
            raise InputError("--drawn needs a run of search --superlm; this run trained its SuperLMs itself")
        paths = {load_space(name).name: name for name in trained_config(Path(superlm)).space.split(",")}
        drawn: dict[str, Model] = {}
        for student in students:
            costs = run.evaluations.loc[run.evaluations["space"] == student.space, "flops"]
            least, most = (1 - NEAR) * student.flops, (1 + NEAR) * student.flops
            for side, low, high in (("cheaper", least, student.flops - 1), ("more-expensive", student.flops + 1, most)):
                if costs.between(low, high).any():
                    out = self.out / "drawn" / f"{student.slug}-{side}"
                    model = self._random_subnet(
                        out, ["--space", paths[student.space], "--superlm", str(superlm)], low, high
                    )
                    drawn.setdefault(model.name, model)  # the same subnet may be drawn twice
        return list(drawn.values())

    def _random_subnet(self, out: Path, where: Sequence[str], low: float, high: float) -> Model:
        if not (out / "summary.json").exists():
            bounds = ["--constraint", f"flops>={low:.0f}", "--constraint", f"flops<={high:.0f}"]
            engine = ["--engine", "random", "--evaluations", "1", "--baselines", "none", "--out", str(out)]
            self.commands.run(["search", *where, *engine, *bounds], "drawing of random subnets", f"drawn-{out.name}")
        return self._distilled(load_run(out), 1, out.with_name(f"{out.name}-student"), DRAWN)

    def _distilled(self, run: Run, number: int, out: Path, kind: str) -> Model:
        """Return a row of a frontier, counted from 1, trained further."""
        given = self.arguments
        words = ["--pick", str(number), "--steps", str(given.distil_steps)]
        words += [] if given.distil_lr is None else ["--lr", str(given.distil_lr)]
        if not (out / "distil.json").exists():
            tokens = given.distil_steps * run.config.batch_size * run.config.seq_len
            command = ["distil", str(run.folder), *words, "--out", str(out)]
            self.commands.run(command, f"further training: {kind}", f"distil-{out.name}", lambda: tokens)
        row = run.frontier.iloc[number - 1]
        sizes = f"{row['layers']}x{row['hidden_size']}, {row['heads']} heads, ratio {row['mlp_ratio']}"
        return Model(f"{row['space']} {sizes}", kind, str(out), row["flops"], row["params"], space=row["space"])

    def baselines(self, run: Run) -> list[Model]:
        """Return the baselines whose weights are kept, except half of the teacher."""
        kept = run.baselines[(run.baselines["weights"] != "not kept") & (run.baselines["how"] != TRUNCATED)]
        return [
            Model(f"{row['name']} ({row['how']})", BASELINE, row["weights"], row["flops"], row["params"])
            for row in kept.to_dict("records")
        ]


@dataclass(frozen=True)
class OfTeacher:
    """The teacher of a run, and the models that are compared with it or made of it without training.

    Attributes:
        run: Finished run.
        out: Folder for everything.
    """

    run: Run
    out: Path

    @cached_property
    def teacher(self) -> Teacher:
        """Return the loaded teacher."""
        return load_teacher(self.run.config.teacher)

    def model(self) -> Model:
        """Return the teacher itself."""
        return _of_loaded("teacher", TEACHER, self.run.config.teacher, self.teacher)

    def half(self) -> Model:
        """Return the first half of the teacher's layers, rounded up, in the teacher's own format."""
        folder, teacher = self.out / "half", load_teacher(self.run.config.teacher)
        layers = find(teacher.model, FAMILIES[teacher.model.config.model_type].layers)
        del layers[-(-len(layers) // 2) :]
        teacher.model.config.num_hidden_layers = len(layers)
        if not folder.exists():
            with whole_folder(folder) as new, quiet_transformers():
                teacher.model.save_pretrained(new)
                teacher.tokenizer.save_pretrained(new)
        halved = load_teacher(str(folder))
        return _of_loaded(f"teacher's first {len(layers)} layers", HALF, str(folder), halved)

    def published(self, names: Sequence[str]) -> list[Model]:
        """Return published models as they are, without the teacher itself."""
        models = []
        for name in names:
            if name == self.run.config.teacher:
                print(f"{name} is the teacher; it is not fine-tuned again as a published model", flush=True)
                continue
            model = load_teacher(name)
            alike = model.tokenizer.get_vocab() == self.teacher.tokenizer.get_vocab()
            shown = "all-MiniLM-L6-v2" if name == PACKAGED else Path(name).name
            models.append(_of_loaded(f"{shown} as published", PUBLISHED, name, model, alike))
        return models

    def similarities(self, models: Sequence[Model]) -> pd.DataFrame:
        """Return the rank correlation of each model's sentence similarities with the teacher's, without labels.

        Models that no student's format can hold are left out, such as those with other tokens. Earlier results are read
        from `vectors.csv`, which is written again.
        """
        path, rows = self.out / "vectors.csv", list[dict[str, object]]()
        before = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["kind", "model", "rho"])
        known = {(row["kind"], row["model"]): row for row in before.to_dict("records")}
        floor = Model("mean of the teacher's word vectors", TEACHER, "", float("nan"), float("nan"))
        for model in [floor, *models]:
            if (row := known.get((model.kind, model.name))) is None:
                row = {"kind": model.kind, "model": model.name, "flops": model.flops, "rho": self._similarity(model)}
            rows.append({str(key): value for key, value in row.items()})
        table = pd.DataFrame(rows).sort_values("flops")
        table.to_csv(path, index=False)
        return table[table["rho"].notna()]

    @cached_property
    def _measure(self) -> SentenceSimilarity:
        corpus = load_corpus(self.run.config.texts, self.teacher.tokenizer, cache_folder())
        return SentenceSimilarity(
            self.teacher, corpus.blocks(SEQ_LEN)[1].spread(PASSAGES), choose_device("cpu", "fp32")
        )

    def _similarity(self, model: Model) -> float:
        if model.kind == TEACHER:
            return 1.0 if model.source else self._measure.of_word_vectors()
        source = str(model_folder(Path(model.source))) if Path(model.source).is_dir() else model.source
        try:
            return self._measure.of(load_as_student(source, self.teacher))
        except InputError:
            return float("nan")


def _of_loaded(name: str, kind: str, source: str, loaded: Teacher, alike: bool = True) -> Model:
    """Return the model of a loaded encoder, with the FLOPs and parameters of its own module."""
    return Model(name, kind, source, flops(loaded.subnet), loaded.model.num_parameters(), alike)


def validation(run: Run, commands: Commands, out: Path, arguments: argparse.Namespace, task: str) -> Path:
    """Return the folder of `validate-proxy`, which measures how well the proxy ranks subnets."""
    folder, given = out / "validation", arguments
    if not (folder / "summary.json").exists():
        words = ["--subnets", str(given.subnets), "--alone-steps", str(given.alone_steps)]
        words += ["--alone-lr", str(given.lr)] if given.alone_steps and given.lr is not None else []
        words += ["--task", task, "--lr", given.student_lr.split(",")[-1]]
        words += [] if given.data is None else ["--cosine", str(given.data / "glue" / "STS-B")]
        command = ["validate-proxy", str(run.folder), *words, "--out", str(folder)]
        commands.run(command, "validation of the proxy", "validation")
    return folder


def ranking(folder: Path) -> list[str]:
    """Return the tables of a validation in Markdown."""
    table = pd.read_csv(folder / "ranking.csv").to_markdown(index=False)
    notes = json.loads((folder / "summary.json").read_text())["notes"]
    return ["## How the proxy ranks", "", table, "", *(f"- {note}" for note in notes), ""]
