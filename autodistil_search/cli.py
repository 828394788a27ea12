"""The command line: parse, run, print the result on standard output; all else goes to standard error.

Exit codes: 0 done, 1 failed, 2 input that cannot be used, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import sys
import warnings
from argparse import Action
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

from autodistil_search import __version__
from autodistil_search.commands import COMMANDS, Outcome
from autodistil_search.config import SearchConfig, TrainConfig, flag
from autodistil_search.errors import ExportError, InputError, ScoringError, Terminated
from autodistil_search.processes import is_main
from autodistil_search.stepconfig import DistilConfig, FinetuneConfig, ValidateConfig

if TYPE_CHECKING:
    from autodistil_search.progress import Reporter

_EXAMPLES = {
    "": (
        "autodistil-search doctor",
        "autodistil-search search --objectives acc,flops --space tiny",
        "autodistil-search search --text wiki/*.txt.gz --steps 20000 --constraint 'flops<=1.5G' --out runs/mine",
        "autodistil-search export runs/mine --to my-student --pick 'flops<=200M' --onnx",
    ),
    "search": (
        "autodistil-search search --objectives acc,flops,params --space tiny,small --out runs/mine",
        "autodistil-search search --space debug --steps 20 --baselines none --json --quiet | jq '.frontier[0]'",
    ),
    "train": (
        "autodistil-search train --space small --text hf:wikimedia/wikipedia:20231101.en --stream --steps 100000",
        "autodistil-search train --space tiny --steps 20000 --precision bf16 --out superlms/tiny",
    ),
    "plan": (
        "autodistil-search plan --space tiny --tokens 100M",
        "autodistil-search plan --space base --tokens 26B --devices 8 --batch-size 256 --flops-per-second 100T",
    ),
    "profile": (
        "autodistil-search profile --space tiny",
        "autodistil-search profile --space tiny,small --throughput-batch 64 --json",
    ),
    "worker": (
        "autodistil-search worker --storage postgresql://me@db/nas --study small-1",
        "autodistil-search worker --storage nas.journal --patience 600",
    ),
    "distil": (
        "autodistil-search distil runs/mine --pick 'flops<=200M' --steps 20000",
        "autodistil-search distil runs/mine --pick 3 --out students/third",
    ),
    "validate-proxy": (
        "autodistil-search validate-proxy runs/mine",
        "autodistil-search validate-proxy runs/mine --subnets 16 --probe topic --task topic",
    ),
    "finetune": (
        "autodistil-search finetune packaged --task topic --seeds 5",
        "autodistil-search finetune students/third --task mail.csv --losses logits,hidden:0.1 --teacher finetuned/mail",
    ),
    "list": ("autodistil-search list", "autodistil-search list --json | jq .engines"),
    "partition": ("autodistil-search partition oneshot --k 3 --to spaces",),
    "report": (
        "autodistil-search report runs/mine --figure",
        "autodistil-search report runs/seed-0 runs/seed-1 --to both",
    ),
    "export": (
        "autodistil-search export runs/mine --to my-student",
        "autodistil-search export runs/mine --to my-student --pick 1 --int8 --license apache-2.0",
    ),
    "doctor": ("autodistil-search doctor", "autodistil-search doctor --json"),
    "completion": (
        "autodistil-search completion bash > ~/.local/share/bash-completion/completions/autodistil-search",
        "autodistil-search completion zsh > ~/.zfunc/_autodistil-search",
    ),
}
"""Command lines for the help of each command, and of all."""

_EXIT_CODES = """exit codes:
  0    done
  1    failed, or what doctor looks at is broken
  2    input that cannot be used
  130  interrupted; the same command goes on
  143  terminated (SIGTERM); the same command goes on"""


class _HelpFormatter(DefaultHelpFormatter):
    """Leaves the lines of an epilog as they are, and lists the commands without a line of its own."""

    def _format_action(self, action: Action) -> str:
        if action.dest == "command":
            return "".join(map(self._format_action, self._iter_indented_subactions(action)))
        return str(super()._format_action(action))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else str(super()._fill_text(text, width, indent))


class _Parser(ArgumentParser):
    """Says what is wrong in one line."""

    def __init__(self, description: str | None = None, epilog: str | None = None, **others: Any) -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=_HelpFormatter, **others)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002 - the base class's
        self.exit(2, f"autodistil-search: {' '.join(str(message).split())} (see --help)\n")


def _examples(name: str) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in _EXAMPLES[name])])


def _add_plan(parser: ArgumentParser) -> None:
    parser.add_argument("--tokens", type=str, required=True, help="Tokens to train on, such as 26B.")
    parser.add_argument("--devices", type=int, default=1, help="Devices that share each step.")
    parser.add_argument("--batch-size", type=int | None, help="Blocks in a step of all devices; 4 for each.")
    parser.add_argument(
        "--flops-per-second", type=str | None, help="What a device sustains, such as 100T; else it is measured here."
    )
    _add_settings(parser, TrainConfig, _PLANNED)


def _add_worker(parser: ArgumentParser) -> None:
    parser.add_argument("--storage", type=str, required=True, help="A database's URL, or the path of a journal file.")
    parser.add_argument("--study", type=str, default=SearchConfig.study, help="Name of the study there.")
    parser.add_argument("--superlm", type=str | None, help="Folder of the search, if it has another path here.")
    parser.add_argument("--patience", type=float | None, help="Seconds without work after which to leave.")


def _add_positional_and_settings(parser: ArgumentParser, config: type[Any], positional: str) -> None:
    """All settings of `config`, one of them without a flag."""
    parser.add_argument(positional, type=str, help=_helps(config)[positional])
    _add_settings(parser, config, {field.name for field in fields(config)} - {positional})


def _add_partition(parser: ArgumentParser) -> None:
    parser.add_argument("space", type=str, help="Search space: a shipped one's name, or the path of a YAML file.")
    parser.add_argument("--k", type=int, required=True, help="Number of sub-spaces.")
    parser.add_argument("--to", type=str, default=".", help="Folder for the YAML files.")


def _add_report(parser: ArgumentParser) -> None:
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
        help="Write figures and tables (PNG, PDF, SVG; Markdown, LaTeX) for papers.",
    )


def _add_completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", type=Literal["bash", "zsh"], help="Which shell it is for.")


def _add_export(parser: ArgumentParser) -> None:
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
        help="Stock BERT (bert) or MPNet (mpnet), with its own modelling file (own), or the first that can be (auto).",
    )
    parser.add_argument("--onnx", action="store_true", help="Write model.onnx, checked against PyTorch (extra onnx).")
    parser.add_argument("--int8", action="store_true", help="Write model_int8.onnx, too, and say what it costs.")
    parser.add_argument("--teacher", type=str | None, help="Teacher to compare with, if not the search's.")
    parser.add_argument("--task", type=str | None, help="Task to measure a fine-tuned student on, in every runtime.")
    parser.add_argument("--license", type=str | None, help="Licence of the weights, for the card, such as apache-2.0.")
    parser.add_argument("--push-to-hub", type=str | None, metavar="REPO_ID", help="Upload the folder to the hub.")


_PLANNED = (
    *("space", "depth", "teacher", "teacher_layer", "seq_len", "loss", "relations", "relation_heads", "sampling"),
    *("random_subnets", "subnet_weights", "in_place", "hidden", "seed", "device", "precision", "keep"),
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


_PARSERS: dict[str, tuple[str, str, Callable[[ArgumentParser], None] | None]] = {
    "search": (
        "train, search and report",
        "Train the SuperLM of each space, search it, and report the Pareto frontier.",
        partial(_add_settings, config=SearchConfig),
    ),
    "train": (
        "train SuperLMs only; search them later with search --superlm",
        "Train the SuperLM of each space, for searches to come. As several processes, on one machine or "
        "many, it is started by `accelerate launch -m autodistil_search train ...` or `torchrun -m ...`.",
        partial(_add_settings, config=TrainConfig),
    ),
    "plan": (
        "what training will take",
        "What training a SuperLM will take: steps, hours, device memory, checkpoints.",
        _add_plan,
    ),
    "profile": (
        "what the subnets of a space cost",
        "What the subnets of a space cost: the range that constraints can ask for.",
        partial(_add_settings, config=SearchConfig, names=_PROFILED),
    ),
    "worker": (
        "score subnets for searches on other machines",
        "Score subnets for the searches at a study, on this machine, until they have ended. Start as many "
        "as there are machines; teacher, text and settings are those of `search --storage URL --study NAME`.",
        _add_worker,
    ),
    "distil": (
        "train a chosen student further",
        "Train a student of a finished search further, alone, from the weights that its SuperLM has for it.",
        partial(_add_positional_and_settings, config=DistilConfig, positional="run"),
    ),
    "validate-proxy": (
        "how well a proxy ranks, with confidence intervals",
        "How well the proxy of a finished search ranks subnets of like cost, and whether it beats FLOPs.",
        partial(_add_positional_and_settings, config=ValidateConfig, positional="run"),
    ),
    "finetune": (
        "fine-tune a model on a labelled task",
        "Fine-tune a model on a labelled task, several times over: a teacher, or a student, by the labels, "
        "by a fine-tuned teacher, or by both.",
        partial(_add_positional_and_settings, config=FinetuneConfig, positional="model"),
    ),
    "list": (
        "what can be named, and what is installed beside it",
        "What can be named: objectives, engines, proxies, teachers and search spaces.",
        None,
    ),
    "partition": (
        "split a search space into K",
        "Split a search space into K sub-spaces of neighbouring cost, each a YAML file.",
        _add_partition,
    ),
    "report": (
        "the page of one run, or of several together",
        "Write report.html of a finished search again, with what was found out since, or one of several searches "
        "together, if their numbers may share axes.",
        _add_report,
    ),
    "export": (
        "a student as a folder that others can load",
        "Write a student as a folder that loads without this package, with a card.",
        _add_export,
    ),
    "doctor": (
        "what this machine offers, what is missing, what would be slow",
        "Look at versions, device, precision, threads, memory, disk and extras of this machine; nothing is "
        "downloaded. The exit code is 1 if something required is broken.",
        None,
    ),
    "completion": (
        "a script that completes commands, flags and values",
        "Print a completion script.",
        _add_completion,
    ),
}
"""Each command's summary, its description, and what adds its flags if it has some of its own."""


def make_parser() -> ArgumentParser:
    """The parser of `autodistil-search`."""
    parser = _Parser(
        "Multi-objective search for compressed language encoders. Results go to standard output, all else to standard "
        "error.",
        f"{_examples('')}\n\n{_EXIT_CODES}",
        prog="autodistil-search",
        version=__version__,
    )
    commands = parser.add_subcommands(
        required=True,
        dest="command",
        metavar="COMMAND",
        title="commands",
        description="autodistil-search COMMAND --help tells the flags of each.",
    )
    for name, (summary, description, add_flags) in _PARSERS.items():
        command = _Parser(description, _examples(name))
        commands.add_subcommand(name, command, help=summary)
        if name != "completion":
            command.add_argument("--json", action="store_true", help="Print the result as one JSON object.")
            command.add_argument("--quiet", action="store_true", help="Show no progress, only the result.")
        if add_flags is not None:
            add_flags(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        parsed = make_parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    except (OSError, UnicodeDecodeError) as error:
        _complain(f"--config cannot be read: {error}")
        return 2
    settings: dict[str, Any] = parsed[parsed.command].as_dict()
    try:
        return _run(parsed.command, settings)
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


def _run(command: str, settings: dict[str, Any]) -> int:
    """Run a command and print its result, from one of the processes that were started together."""
    from rich.console import Console

    from autodistil_search.progress import ConsoleReporter, Reporter

    settings.pop("config", None)
    as_json, quiet = settings.pop("json", False), settings.pop("quiet", False)
    # Whatever a library or a plugin prints is not the result.
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.showwarning = lambda message, *_: _complain(f"warning: {message}")
        reporter = Reporter() if quiet or not is_main() else ConsoleReporter(Console(stderr=True))
        outcome = {**COMMANDS, "completion": _completion}[command](settings, reporter)
    if is_main():
        outcome.print(as_json)
    return outcome.code


def _completion(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.completion import completion_script

    return Outcome({}, lambda _: print(completion_script(make_parser(), settings["shell"])))


def _complain(message: object) -> None:
    """One line on standard error, from one of the processes that were started together."""
    if is_main():
        print(f"autodistil-search: {message}", file=sys.stderr)
