"""The command line: parse, call, print. Exit codes: 0 done, 1 failed, 2 input that cannot be used,
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from autodistil_search import __version__
from autodistil_search.config import SearchConfig, TrainConfig, flag
from autodistil_search.errors import ExportError, InputError, ScoringError, Terminated
from autodistil_search.objectives import parse_amount
from autodistil_search.plugins import Plugins
from autodistil_search.processes import is_main
from autodistil_search.stepconfig import DistilConfig, FinetuneConfig, ValidateConfig


class _Parser(ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002 - the base class's
        self.exit(2, f"autodistil-search: {' '.join(str(message).split())} (see --help)\n")


def make_parser() -> ArgumentParser:
    """The parser of `autodistil-search`."""
    parser = _Parser(
        prog="autodistil-search",
        description="Multi-objective search for compressed language encoders.",
        version=__version__,
    )
    commands = parser.add_subcommands(required=True, dest="command")
    search = _Parser(description="Train the SuperLM of each space, search it, and report the Pareto frontier.")
    _add_settings(search, SearchConfig)
    commands.add_subcommand("search", search, help="train, search and report")
    train = _Parser(
        description="Train the SuperLM of each space, for searches to come. As several processes, on one machine or "
        "many, it is started by `accelerate launch -m autodistil_search train ...` or `torchrun -m ...`."
    )
    _add_settings(train, TrainConfig)
    commands.add_subcommand("train", train, help="train SuperLMs only; search them later with search --superlm")
    plan = _Parser(description="What training a SuperLM will take: steps, hours, device memory, checkpoints.")
    plan.add_argument("--tokens", type=str, required=True, help="Tokens to train on, such as 26B.")
    plan.add_argument("--devices", type=int, default=1, help="Devices that share each step.")
    plan.add_argument("--batch-size", type=int | None, help="Blocks in a step of all devices; 4 for each.")
    plan.add_argument(
        "--flops-per-second", type=str | None, help="What a device sustains, such as 100T; else it is measured here."
    )
    _add_settings(plan, TrainConfig, _PLANNED)
    commands.add_subcommand("plan", plan, help="what training will take")
    profile = _Parser(description="What the subnets of a space cost: the range that constraints can ask for.")
    _add_settings(profile, SearchConfig, _PROFILED)
    commands.add_subcommand("profile", profile, help="what the subnets of a space cost")
    worker = _Parser(
        description="Score subnets for the searches at a study, on this machine, until they have ended. Start as many "
        "as there are machines; teacher, text and settings are those of `search --storage URL --study NAME`."
    )
    worker.add_argument("--storage", type=str, required=True, help="A database's URL, or the path of a journal file.")
    worker.add_argument("--study", type=str, default=SearchConfig.study, help="Name of the study there.")
    worker.add_argument("--superlm", type=str | None, help="Folder of the search, if it has another path here.")
    worker.add_argument("--patience", type=float | None, help="Seconds without work after which to leave.")
    commands.add_subcommand("worker", worker, help="score subnets for searches on other machines")
    distil = _Parser(
        description="Train a student of a finished search further, alone, from the weights that its SuperLM has for it."
    )
    distil.add_argument("run", type=str, help=_helps(DistilConfig)["run"])
    _add_settings(distil, DistilConfig, {field.name for field in fields(DistilConfig)} - {"run"})
    commands.add_subcommand("distil", distil, help="train a chosen student further")
    validate = _Parser(
        description="How well the proxy of a finished search ranks subnets of like cost, and whether it beats FLOPs."
    )
    validate.add_argument("run", type=str, help=_helps(ValidateConfig)["run"])
    _add_settings(validate, ValidateConfig, {field.name for field in fields(ValidateConfig)} - {"run"})
    commands.add_subcommand("validate-proxy", validate, help="how well a proxy ranks, with confidence intervals")
    finetune = _Parser(
        description="Fine-tune a model on a labelled task, several times over: a teacher, or a student, by the labels, "
        "by a fine-tuned teacher, or by both."
    )
    finetune.add_argument("model", type=str, help=_helps(FinetuneConfig)["model"])
    _add_settings(finetune, FinetuneConfig, {field.name for field in fields(FinetuneConfig)} - {"model"})
    commands.add_subcommand("finetune", finetune, help="fine-tune a model on a labelled task")
    listing = _Parser(description="What can be named: objectives, engines, proxies, teachers and search spaces.")
    commands.add_subcommand("list", listing, help="what can be named, and what is installed beside it")
    partition = _Parser(description="Split a search space into K sub-spaces of neighbouring cost, each a YAML file.")
    partition.add_argument("space", type=str, help="Search space: a shipped one's name, or the path of a YAML file.")
    partition.add_argument("--k", type=int, required=True, help="Number of sub-spaces.")
    partition.add_argument("--to", type=str, default=".", help="Folder for the YAML files.")
    commands.add_subcommand("partition", partition, help="split a search space into K")
    commands.add_subcommand("report", _report_parser(), help="the page of one run, or of several together")
    commands.add_subcommand("export", _export_parser(), help="a student as a folder that others can load")
    return parser


def _report_parser() -> _Parser:
    parser = _Parser(
        description="Write report.html of a finished search again, with what was found out since, or one of several "
        "searches together, if their numbers may share axes."
    )
    parser.add_argument("runs", type=str, nargs="+", help="Folders of finished searches.")
    parser.add_argument(
        "--to",
        type=str | None,
        help="Folder to write to: new, empty, or an earlier report's. If not given, the search's own; of several, one "
        "beside the first.",
    )
    parser.add_argument(
        "--figure",
        action="store_true",
        help="Write figures (PNG, PDF, SVG) and tables (Markdown, LaTeX) for papers, too.",
    )
    return parser


def _export_parser() -> _Parser:
    parser = _Parser(description="Write a student as a folder that loads without this package, with a card.")
    parser.add_argument("model", type=str, help="Folder of a finished search, distil or finetune, or a student's.")
    parser.add_argument("--to", type=str, required=True, help="Folder to write: new, empty, or an earlier export.")
    parser.add_argument(
        "--pick",
        type=str | None,
        help="Row of the frontier: knee (the default), a number from 1, cheapest first, or bounds such as flops<=200M: "
        "of the rows that keep them, the best in the search's first objective.",
    )
    parser.add_argument(
        "--format",
        type=str,
        default="auto",
        help="Stock BERT (bert), with its own modelling file (own), or the first of them that can be (auto).",
    )
    parser.add_argument("--onnx", action="store_true", help="Write model.onnx, checked against PyTorch (extra onnx).")
    parser.add_argument("--int8", action="store_true", help="Write model_int8.onnx, too, and say what it costs.")
    parser.add_argument("--teacher", type=str | None, help="Teacher to compare with, if not the search's.")
    parser.add_argument("--task", type=str | None, help="Task to measure a fine-tuned student on, in every runtime.")
    parser.add_argument("--license", type=str | None, help="Licence of the weights, for the card, such as apache-2.0.")
    parser.add_argument("--push-to-hub", type=str | None, metavar="REPO_ID", help="Upload the folder to the hub.")
    return parser


_PLANNED = (
    *("space", "depth", "teacher", "teacher_layer", "seq_len", "loss", "relations", "relation_heads", "sampling"),
    *("random_subnets", "subnet_weights", "in_place", "seed", "device", "precision", "keep"),
)
"""Settings that a plan depends on."""


_PROFILED = ("space", "teacher", "device", "precision", "latency_batch", "throughput_batch", "measured_seq_len")
"""Settings that costs depend on."""


def _helps(config: type[Any]) -> dict[str, str | None]:
    """What each setting means, from the docstrings of its class."""
    documented = [entry for each in config.__mro__ for entry in docstring_parser.parse(each.__doc__ or "").params]
    return {entry.arg_name: entry.description for entry in documented}


def _add_settings(parser: ArgumentParser, config: type[Any], names: Container[str] | None = None) -> None:
    """A flag for each field of `config`, or those of `names`: its type, default and help taken from there."""
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file with any of these settings.")
    types = get_type_hints(config)
    helps = _helps(config)
    for setting in fields(config):
        if names is not None and setting.name not in names:
            continue
        if setting.name == "text":  # several files behind one flag, as a shell's *.txt gives them
            parser.add_argument(flag(setting.name), type=str, nargs="+", help=helps[setting.name])
        elif setting.name == "constraint":
            parser.add_argument(flag(setting.name), type=str, action="append", help=helps[setting.name])
        elif types[setting.name] is bool:
            parser.add_argument(flag(setting.name), action="store_true", help=helps[setting.name])
        else:
            parser.add_argument(
                flag(setting.name), type=types[setting.name], default=setting.default, help=helps[setting.name]
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        parsed = make_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    except (OSError, UnicodeDecodeError) as error:
        _complain(f"--config cannot be read: {error}")
        return 2
    settings: dict[str, Any] = parsed[parsed.command].as_dict()
    settings.pop("config", None)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _complain(f"warning: {message}")
            return _COMMANDS[parsed.command](settings)
    except InputError as error:
        _complain(error)
        return 2
    except (FloatingPointError, OSError, MemoryError, ScoringError, ExportError) as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        _complain("stopped; the same command goes on from here")
        return 130
    except Terminated as error:
        _complain(error)
        return 143


def _complain(message: object) -> None:
    """One line on standard error, from one of the processes that were started together."""
    if is_main():
        print(f"autodistil-search: {message}", file=sys.stderr)


def _search(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.progress import ConsoleReporter
    from autodistil_search.run import search
    from autodistil_search.tables import print_frontier

    config = SearchConfig.from_dict(settings)
    console = Console()
    reporter = ConsoleReporter(console)
    reporter.say(f"searching {config.space} for {config.objectives}; results go to {config.folder}")
    print_frontier(search(config, reporter), console)
    return 0


def _train(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.progress import ConsoleReporter, Reporter
    from autodistil_search.training import train

    config = TrainConfig.from_dict(settings)
    reporter = ConsoleReporter(Console()) if is_main() else Reporter()
    reporter.say(f"training SuperLMs of {config.space}; they go to {config.folder}")
    folder = train(config, reporter)
    reporter.say(f"search them: autodistil-search search --space {config.space} --superlm {folder}")
    return 0


def _partition(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.partition import partition, write_spaces
    from autodistil_search.space import load_space
    from autodistil_search.tables import print_partition

    parent = load_space(settings["space"])
    parts = partition(parent, settings["k"])
    paths = write_spaces(parts, parent, Path(settings["to"]))
    print_partition(parent, parts, paths, Console())
    return 0


def _export(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.export import ExportOptions, export
    from autodistil_search.progress import ConsoleReporter

    own = ("model", "to")
    options = ExportOptions(**{name: value for name, value in settings.items() if name not in own})
    reporter = ConsoleReporter(Console())
    folder = export(Path(settings["model"]), Path(settings["to"]), options, reporter)
    reporter.say(f"exported to {folder}; its README.md says how to load it")
    return 0


def _report(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.progress import ConsoleReporter
    from autodistil_search.reporting import report_runs

    to = settings["to"]
    paths = report_runs([Path(each) for each in settings["runs"]], None if to is None else Path(to), settings["figure"])
    reporter = ConsoleReporter(Console())
    for path in paths:
        reporter.say(str(path))
    return 0


def _profile(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.device import choose_device
    from autodistil_search.inputs import check_measured_length, find_teacher, known_objectives, load_spaces
    from autodistil_search.profile import profile_space
    from autodistil_search.tables import print_profile

    config, plugins = SearchConfig.from_dict(settings), Plugins()
    spaces = load_spaces(config.space_names)
    device = choose_device(config.device, config.precision)
    teacher = find_teacher(config, device, plugins)
    check_measured_length(config.measured_seq_len, teacher)
    costs = [each for each in known_objectives(config, device, plugins).values() if not each.is_proxy]
    for space in spaces:
        print_profile(space, profile_space(space, teacher, costs), costs, Console())
    return 0


def _worker(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.progress import ConsoleReporter
    from autodistil_search.worker import work

    reporter = ConsoleReporter(Console())
    scored = work(**settings, reporter=reporter)
    reporter.say(f"scored {scored} subnets")
    return 0


def _distil(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.progress import ConsoleReporter, Reporter
    from autodistil_search.students import distil

    config = DistilConfig(**settings)
    reporter = ConsoleReporter(Console()) if is_main() else Reporter()
    reporter.say(f"training a student of {config.run} further; it goes to {config.folder}")
    found = distil(config, reporter)
    reporter.say(f"held-out relation loss {found.before:.4f} before, {found.after:.4f} now; student: {found.folder}")
    return 0


def _validate_proxy(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.progress import ConsoleReporter
    from autodistil_search.tables import print_validation
    from autodistil_search.validation import validate_proxy

    config, console = ValidateConfig(**settings), Console()
    reporter = ConsoleReporter(console)
    reporter.say(f"validating the proxy of {config.run}; results go to {config.folder}")
    print_validation(validate_proxy(config, reporter), console)
    return 0


def _finetune(settings: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.finetuning import run_finetuning
    from autodistil_search.progress import ConsoleReporter
    from autodistil_search.tables import print_finetuning

    config = FinetuneConfig(**settings)
    console = Console()
    reporter = ConsoleReporter(console)
    reporter.say(f"fine-tuning {config.model} on {config.task}; results go to {config.folder}")
    print_finetuning(run_finetuning(config, reporter), console)
    return 0


def _list(_: Mapping[str, Any]) -> int:
    from rich.console import Console

    from autodistil_search.tables import print_names

    print_names(Plugins(), Console())
    return 0


def _plan(settings: Mapping[str, Any]) -> int:
    own = ("tokens", "devices", "batch_size", "flops_per_second")
    tokens_text, devices, batch_size, speed_text = (settings[name] for name in own)
    tokens = parse_amount(tokens_text, "--tokens")
    speed = parse_amount(speed_text, "--flops-per-second")
    if devices < 1:
        raise InputError(f"--devices {devices}; allowed: whole numbers from 1")
    others = {name: value for name, value in settings.items() if name not in own}
    if batch_size is None:
        batch_size = TrainConfig.batch_size * devices
    config = TrainConfig.from_dict({**others, "batch_size": batch_size})
    if config.batch_size < devices:
        raise InputError(f"--batch-size {config.batch_size}; allowed: at least one block for each of {devices} devices")
    assert tokens is not None

    from rich.console import Console

    from autodistil_search.inputs import resolve_training
    from autodistil_search.plan import make_plan, steps_for
    from autodistil_search.progress import ConsoleReporter
    from autodistil_search.tables import print_plans

    console = Console()
    config = replace(config, steps=steps_for(tokens, config.batch_size, config.seq_len))
    found, reporter = resolve_training(config, needs_text=False), ConsoleReporter(console)
    plans = [
        make_plan(space, found.teacher, found.options, config.seq_len, found.device, devices, speed, reporter)
        for space in found.spaces
    ]
    where = f"measured here, {found.device.name} {found.device.precision}"
    print_plans(plans, where if speed is None else "as stated", config.keep, console)
    return 0


_COMMANDS = {
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
}
