"""What each command does: settings in, an `Outcome` out, which is printed in one place, as text or as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistil_search.base.errors import InputError
from autodistil_search.base.plugins import Plugins
from autodistil_search.nas.objectives import parse_amount
from autodistil_search.settings.common import check_whole_number
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.settings.search import SearchConfig
from autodistil_search.settings.train import TrainConfig
from autodistil_search.settings.validate_proxy import ValidateConfig

if TYPE_CHECKING:
    from rich.console import Console

    from autodistil_search.base.progress import Reporter

_NO_END = 100_000
"""Columns of a file or pipe: there a table is as wide as it is, and no cell is cut."""


@dataclass(frozen=True)
class Outcome:
    """What a command found.

    Args:
        record: For programs: what JSON can hold. Docs: docs/cli.md.
        show: Prints the same for people.
        code: Exit code.
    """

    record: Mapping[str, Any]
    show: Callable[[Console], object]
    code: int = 0

    def print(self, as_json: bool) -> None:
        """Print it on standard output."""
        if as_json:
            print(json.dumps(self.record, indent=2, allow_nan=False), flush=True)
            return
        from autodistil_search.base.progress import plain_console

        bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
        self.show(plain_console(width=None if bounded else _NO_END))


def _lines(*texts: str) -> Callable[[Console], object]:
    def show(console: Console) -> None:
        for text in texts:
            console.print(text, highlight=False, markup=False, soft_wrap=True)

    return show


def _search(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = SearchConfig.from_dict(settings)

    from autodistil_search.cli.records import search_record
    from autodistil_search.cli.tables import print_frontier
    from autodistil_search.runs.search import search

    reporter.say(f"searching {config.space} for {config.objectives}; results go to {config.folder}")
    run = search(config, reporter)
    return Outcome(search_record(run), partial(print_frontier, run))


def _train(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = TrainConfig.from_dict(settings)

    from autodistil_search.runs.train import train

    reporter.say(f"training SuperLMs of {config.space}; they go to {config.folder}")
    folder = train(config, reporter)
    record = {"folder": str(folder), "spaces": config.space_names}
    return Outcome(record, _lines(f"search them: autodistil-search search --space {config.space} --superlm {folder}"))


def _plan(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    own = ("tokens", "devices", "batch_size", "flops_per_second")
    tokens_text, devices, batch_size, speed_text = (settings[name] for name in own)
    tokens = parse_amount(tokens_text, "--tokens")
    speed = parse_amount(speed_text, "--flops-per-second")
    check_whole_number("--devices", devices, 1)
    others = {name: value for name, value in settings.items() if name not in own}
    if batch_size is not None:
        check_whole_number("--batch-size", batch_size, 1)
    else:
        batch_size = TrainConfig.batch_size * devices
    config = TrainConfig.from_dict({**others, "batch_size": batch_size})
    if config.batch_size < devices:
        raise InputError(f"--batch-size {config.batch_size}; allowed: at least one block for each of {devices} devices")
    assert tokens is not None

    from autodistil_search.cli.records import plans_record
    from autodistil_search.cli.tables import print_plans
    from autodistil_search.distillation.plan import make_plan, steps_for
    from autodistil_search.runs.training_inputs import resolve_training

    config = replace(config, steps=steps_for(tokens, config.batch_size, config.seq_len))
    found = resolve_training(config, needs_text=False)
    plans = [
        make_plan(space, found.teacher, found.options, config.seq_len, found.device, devices, speed, reporter)
        for space in found.spaces
    ]
    where = "as stated" if speed else f"measured here, {found.device.name} {found.device.precision}"
    return Outcome(plans_record(plans, where, config.keep), partial(print_plans, plans, where, config.keep))


def _profile(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.base.device import choose_device
    from autodistil_search.cli.records import profiles_record
    from autodistil_search.cli.tables import print_profiles
    from autodistil_search.runs.profile import profile_space
    from autodistil_search.runs.search_inputs import check_measured_length, known_objectives
    from autodistil_search.runs.training_inputs import find_teacher, load_spaces

    config, plugins = SearchConfig.from_dict(settings), Plugins()
    spaces = load_spaces(config.space_names)
    device = choose_device(config.device, config.precision)
    teacher = find_teacher(config, device, plugins)
    check_measured_length(config.measured_seq_len, teacher)
    costs = [each for each in known_objectives(config, device, plugins).values() if not each.is_proxy]
    profiled = [(space, profile_space(space, teacher, costs)) for space in spaces]
    return Outcome(profiles_record(profiled, costs), partial(print_profiles, profiled, costs))


def _worker(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    from autodistil_search.runs.worker import work

    scored = work(**settings, reporter=reporter)
    return Outcome({"study": settings["study"], "scored": scored}, _lines(f"scored {scored} subnets"))


def _distil(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = DistilConfig(**settings)

    from autodistil_search.cli.records import distilled_record
    from autodistil_search.runs.distil import distil

    reporter.say(f"training a student of {config.run} further; it goes to {config.folder}")
    found = distil(config, reporter)
    line = f"held-out relation loss {found.before:.4f} before, {found.after:.4f} now; student: {found.folder}"
    return Outcome(distilled_record(found), _lines(line))


def _finetune(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = FinetuneConfig(**settings)

    from autodistil_search.cli.records import finetuning_record
    from autodistil_search.cli.tables import print_finetuning
    from autodistil_search.runs.finetune import run_finetuning

    reporter.say(f"fine-tuning {config.model} on {config.task}; results go to {config.folder}")
    run = run_finetuning(config, reporter)
    return Outcome(finetuning_record(run), partial(print_finetuning, run))


def _validate_proxy(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    config = ValidateConfig(**settings)

    from autodistil_search.cli.records import validation_record
    from autodistil_search.cli.tables import print_validation
    from autodistil_search.runs.validate_proxy import validate_proxy

    reporter.say(f"validating the proxy of {config.run}; results go to {config.folder}")
    found = validate_proxy(config, reporter)
    return Outcome(validation_record(found), partial(print_validation, found))


def _list(_: Mapping[str, Any], __: Reporter) -> Outcome:
    from autodistil_search.cli.records import names_record
    from autodistil_search.cli.tables import print_names

    record = names_record(Plugins())
    return Outcome(record, partial(print_names, record))


def _partition(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.cli.records import partition_record
    from autodistil_search.cli.tables import print_partition
    from autodistil_search.spaces.partition import partition, write_spaces
    from autodistil_search.spaces.search_space import load_space

    parent = load_space(settings["space"])
    parts = partition(parent, settings["k"])
    record = partition_record(parent, parts, write_spaces(parts, parent, Path(settings["to"])))
    return Outcome(record, partial(print_partition, record))


def _export(settings: Mapping[str, Any], reporter: Reporter) -> Outcome:
    from autodistil_search.base.files import EXPORT_RECORD, read_json
    from autodistil_search.export.student_folder import ExportOptions, export
    from autodistil_search.report.escape import without_markdown

    own = ("model", "to")
    options = ExportOptions(**{name: value for name, value in settings.items() if name not in own})
    folder = export(Path(settings["model"]), Path(settings["to"]), options, reporter)
    record = {"folder": str(folder), **read_json(folder / EXPORT_RECORD)}
    notes = [without_markdown(note) for note in record["notes"]]
    return Outcome(record, _lines(*notes, f"exported to {folder}; its README.md says how to load it"))


def _report(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.runs.report import report_runs

    to = settings["to"]
    paths = report_runs([Path(each) for each in settings["runs"]], None if to is None else Path(to), settings["figure"])
    page, *figures = map(str, paths)
    return Outcome({"page": page, "figures": figures[0] if figures else None}, _lines(page, *figures))


def _doctor(_: Mapping[str, Any], __: Reporter) -> Outcome:
    from autodistil_search.runs.doctor import examine, findings_record, is_usable, print_findings

    findings = examine()
    return Outcome(findings_record(findings), partial(print_findings, findings), 0 if is_usable(findings) else 1)


COMMANDS: Mapping[str, Callable[[Mapping[str, Any], Reporter], Outcome]] = {
    "search": _search,
    "train": _train,
    "plan": _plan,
    "profile": _profile,
    "worker": _worker,
    "distil": _distil,
    "finetune": _finetune,
    "validate-proxy": _validate_proxy,
    "list": _list,
    "partition": _partition,
    "report": _report,
    "export": _export,
    "doctor": _doctor,
}
