"""The SuperLMs of a run: newly trained, continued, or copied from an earlier training."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autodistil_search.base.device import choose_device
from autodistil_search.base.errors import InputError
from autodistil_search.base.executors import open_executor
from autodistil_search.base.files import read_json, readable, refuse_other_settings, whole_folder
from autodistil_search.base.manifest import (
    ENVIRONMENT,
    MANIFEST,
    TRAIN_CONFIG,
    TRAINER_STATE,
    described,
    kind_of,
    verify,
    warn_of_lacking,
    write_manifest,
)
from autodistil_search.base.progress import Reporter
from autodistil_search.base.seeding import seeded
from autodistil_search.base.tracking import LOGS, Callback, Part, Tracking, tracker_names
from autodistil_search.base.user_input import load_yaml
from autodistil_search.base.weighted_names import parse_relations
from autodistil_search.distillation.checkpoints import course_of
from autodistil_search.distillation.training_loop import Distillation, distill_together
from autodistil_search.nas.label_free_proxies import RelationProxy
from autodistil_search.nas.proxies import HARDLY_LEARNT
from autodistil_search.report.findings import COLLAPSED, START, WATCHED_LITTLE, Finding
from autodistil_search.runs.run_folder import check_folder, exclusive, open_folder, superlm_folder
from autodistil_search.runs.training_inputs import TrainingInputs, fit_together, resolve_training
from autodistil_search.settings.train import TrainConfig
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.superlm.model_folder import load_model, save_tokenizer
from autodistil_search.teachers.initial_weights import start_from

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor

WATCHED_BLOCKS = 8
"""Number of held-out blocks measured during training: enough for a trend, at about 1 % of the training time."""
_SECONDS_BETWEEN_FIGURES = 60.0


def train(
    config: TrainConfig,
    reporter: Reporter | None = None,
    executor: AnyExecutor | None = None,
    callback: Callback | None = None,
) -> Path:
    """Train the SuperLM of each space, or continue a stopped training, and return `config.folder`.

    The arguments are those of `autodistil_search.train`; without a reporter, nothing is shown.

    Raises:
        InputError: if an input cannot be used, or the folder holds another training.
        Terminated: after SIGTERM, once the state is saved.
    """
    config = config.absolute()
    folder, settings = config.folder, config.to_dict()
    group = choose_device(config.device, config.precision).processes
    reporter = reporter or Reporter()
    if group.main:
        check_folder(folder, TRAIN_CONFIG, settings)
    if group.count > 1:
        reporter.say(f"{group.count} processes, each with a part of every batch")
    reporter.say("loading the teacher and the text")
    with open_executor(config.executor if group.main else None, config.workers, reporter, executor) as workers:
        materials = resolve_training(config, reporter, executor=workers)
    if not group.main:
        train_superlms(materials, folder, reporter)
        return folder
    tracking = Tracking(tuple(tracker_names(config.track)), callback, folder.name, settings)
    with exclusive(folder):
        open_folder(folder, TRAIN_CONFIG, TrainConfig, settings, materials.environment)
        train_superlms(materials, folder, reporter, tracking)
        if not verify(folder, own=True):
            warn_of_lacking(folder)
            write_manifest(folder, "train", (TRAIN_CONFIG, ENVIRONMENT))
    return folder


def train_superlms(
    materials: TrainingInputs, folder: Path, reporter: Reporter, tracking: Tracking | None = None
) -> tuple[dict[str, AutoDistilModel], list[Finding]]:
    """Return the SuperLM of each space, trained, continued or read from the run's `folder`, and findings about them.

    SuperLMs train together, on the same batches, if their weights and optimizers fit into memory at once. SuperLMs of
    an earlier training (`--superlm`) are loaded unchanged, because defaults may have changed since.
    """
    config, group = materials.config, materials.device.processes
    tracking = tracking or Tracking()
    watches = [_watch(materials, space, superlm_folder(folder, space.name), tracking) for space in materials.spaces]
    superlms: dict[str, AutoDistilModel] = {}
    if getattr(config, "superlm", None) is not None:
        superlms = {watch.space.name: _taken(watch) for watch in watches}
    elif all(group.gather(fit_together(materials))):
        superlms = _trained(materials, watches, reporter)
    else:
        for watch in watches:
            superlms |= _trained(materials, [watch], reporter)
    findings = []
    for watch in watches:
        course = group.from_main(course_of(watch.folder) if group.main else None)
        assert course is not None
        name = watch.space.name
        findings += [Finding(START, {"space": name, "words": words}) for words in course.start]
        events = [Finding(COLLAPSED, {"space": name, **entry}) for entry in course.returns]
        if group.main:
            save_tokenizer(materials.teacher.tokenizer, watch.folder)
            events += watch.findings(superlms[name])
        for finding in events:
            reporter.warn(str(finding))
        findings += events
    return superlms, findings


def _watch(materials: TrainingInputs, space: SearchSpace, folder: Path, tracking: Tracking) -> _Watch:
    return _Watch(materials, space, folder, tracking.part(f"superlm {space.name}", folder / LOGS))


def _taken(watch: _Watch) -> AutoDistilModel:
    """Return the finished SuperLM in the folder of `watch`."""
    model = load_model(watch.folder, AutoDistilModel)
    watch.materials.device.place(model)
    return model


def _trained(materials: TrainingInputs, watches: Sequence[_Watch], reporter: Reporter) -> dict[str, AutoDistilModel]:
    """Return SuperLMs by the name of their space, trained together to the end."""
    assert materials.text is not None
    distillations = [_begun(materials, watch, reporter) for watch in watches]
    try:
        distill_together(
            distillations,
            materials.teacher,
            materials.text.begin(),
            materials.device,
            reporter,
            materials.execution,
        )
    finally:
        for watch in watches:
            watch.draw()
    return {watch.space.name: distillation.model for watch, distillation in zip(watches, distillations, strict=True)}


def _begun(materials: TrainingInputs, watch: _Watch, reporter: Reporter) -> Distillation:
    """Return the training of a SuperLM from its start. Initial weights are computed only for a new training."""
    group, space = materials.device.processes, watch.space
    course = group.from_main(course_of(watch.folder) if group.main else None)
    if course is None:
        reporter.say(f"initialising SuperLM {space.name} from the teacher")
    with seeded(materials.config.seed):
        model = AutoDistilModel(materials.teacher.student_config(space.largest, space))
        notes: Sequence[str] = () if course is None else course.start
        if course is None:
            sample, heads = materials.sample_ids, space.relation_heads
            notes = start_from(model, materials.teacher, materials.config.init, sample, heads)
    for words in notes:
        reporter.say(str(Finding(START, {"space": space.name, "words": words})))
    return Distillation(
        model,
        materials.options_of(space.largest),
        watch.folder,
        f"training SuperLM {space.name}",
        watch,
        sample_ids=materials.sample_ids,
        start_notes=notes,
        part=watch.part,
    )


def relation_proxy(materials: TrainingInputs, blocks: int) -> RelationProxy:
    """Return the proxy of the trained relations' loss on at most `blocks` held-out blocks."""
    options = materials.options
    assert materials.text is not None
    return RelationProxy(
        materials.teacher,
        materials.text.held_out.spread(blocks),
        options.relation_heads,
        options.loss,
        materials.device,
        parse_relations(options.relations),
    )


@dataclass
class _Watch:
    """Observer of a training, which measures four subnets at intervals and draws the training figure."""

    materials: TrainingInputs
    space: SearchSpace
    folder: Path
    part: Part | None
    _drawn: float = field(default_factory=time.monotonic)

    @cached_property
    def _proxy(self) -> RelationProxy:
        return relation_proxy(self.materials, WATCHED_BLOCKS)

    def due(self, step: int, steps: int) -> bool:
        """Return True if the losses are due after `step` of `steps`: at the interval of the settings and at the end."""
        return self.materials.config.is_measured_after(step, steps)

    def measure(self, model: AutoDistilModel) -> Sequence[tuple[str, Subnet, float]]:
        """Return role, sizes and held-out loss of the two ends of the space and of two fixed random subnets."""
        rng = random.Random(0)
        watched = [("largest", self.space.largest), ("smallest", self.space.smallest)]
        watched += [("random", self.space.sample(rng)) for _ in range(2)]
        model.eval()
        losses = [(role, subnet, self._proxy.score(model, subnet)) for role, subnet in watched]
        model.train()
        if time.monotonic() - self._drawn > _SECONDS_BETWEEN_FIGURES:
            self.draw()
        return losses

    def findings(self, model: AutoDistilModel) -> list[Finding]:
        """Return a finding that lists the watched subnets that have learnt next to nothing, if there are any."""
        losses, reference = self.measure(model), self._proxy.reference
        model.eval()
        poor = [
            {"role": role, "subnet": str(subnet), "loss": loss}
            for role, subnet, loss in losses
            if not loss <= HARDLY_LEARNT * reference
        ]
        lr = self.materials.options_of(self.space.largest).lr
        values = {"space": self.space.name, "watched": len(losses), "subnets": poor, "reference": reference, "lr": lr}
        return [Finding(WATCHED_LITTLE, values)] if poor else []

    def draw(self) -> None:
        """Write `training.png` again, on the main process only."""
        if self.materials.device.processes.main:
            from autodistil_search.report.training_figure import write_training_figure  # matplotlib

            write_training_figure(self.folder, f"Training of SuperLM {self.space.name}")
            self._drawn = time.monotonic()


def trained_config(folder: Path) -> TrainConfig:
    """Return the settings of the training in `folder`.

    Raises:
        InputError: if the folder holds no training, or a file of it is damaged.
    """
    path = folder / TRAIN_CONFIG
    if kind_of(folder) not in (None, "train"):
        raise InputError(f"--superlm: {described(folder)}; allowed: the --out folder of a train")
    verify(folder)
    if not path.is_file():
        raise InputError(f"--superlm {str(folder)!r} holds no {TRAIN_CONFIG}; allowed: the --out folder of a train")
    with readable(path):
        return TrainConfig.from_dict(load_yaml(path))


def take_superlm(materials: TrainingInputs, trained: Path, space: SearchSpace, folder: Path) -> None:
    """Copy the finished SuperLM of `space` from the training in `trained` to `folder`, unless the folder exists.

    Raises:
        InputError: if the training is not finished, or if its teacher, text or space of the same name differs.
    """
    source = superlm_folder(trained, space.name)
    with readable(trained / ENVIRONMENT):
        before = dict(read_json(trained / ENVIRONMENT)["inputs"])
        spaces = {entry["name"]: entry for entry in json.loads(before.get("spaces", "[]"))}
    learnt_from = ("teacher_model", "teacher_layer", "text")
    then, now = ({key: identity.get(key) for key in learnt_from} for identity in (before, materials.identity))
    refuse_other_settings(then, now, trained)
    if spaces.get(space.name) != json.loads(json.dumps(space.to_dict())):
        raise InputError(
            f"space {space.name!r} has changed since {str(trained)!r} was trained; allowed: its sizes and depth "
            "at that time"
        )
    if not (source / TRAINER_STATE).is_file() and not (source / MANIFEST).is_file():
        raise InputError(
            f"the SuperLM in {source} is not finished; the same train command continues it from its checkpoint"
        )
    if folder.exists():
        return
    with whole_folder(folder) as new:
        shutil.copytree(source, new, ignore=shutil.ignore_patterns(".*", LOGS), dirs_exist_ok=True)
        verify(new, shown=source)  # verifying the copy reads each file only once
