"""The command line: parse, run, print the result on standard output; all else goes to standard error.

Exit codes: 0 done, 1 failed, 2 input that cannot be used, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from argparse import Action, ArgumentTypeError
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

from autodistil_search import __version__
from autodistil_search.base.distributed import is_main
from autodistil_search.base.errors import ExportError, InputError, ScoringError, Terminated, came_of_memory
from autodistil_search.base.passwords import HIDDEN, names_database, without_password
from autodistil_search.base.standard_streams import discard, flush, messages_on_stderr, open_closed_streams
from autodistil_search.base.user_input import (
    is_finite,
    meant,
    parse_number,
    parse_whole_number,
    parse_yaml,
    quoted,
    read_yaml,
)
from autodistil_search.cli.commands import COMMANDS, Outcome
from autodistil_search.settings.common import flag
from autodistil_search.settings.distil import DistilConfig
from autodistil_search.settings.finetune import FinetuneConfig
from autodistil_search.settings.search import SearchConfig
from autodistil_search.settings.train import TrainConfig
from autodistil_search.settings.validate_proxy import ValidateConfig

if TYPE_CHECKING:
    from autodistil_search.base.progress import Reporter

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

_LONGEST = 2000
"""Characters of an error."""

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
    """Says what is wrong in one line, and shows no password.

    late: Settings whose defaults are those of their class, which is told only what was given.
    """

    def __init__(self, description: str | None = None, epilog: str | None = None, **others: Any) -> None:
        super().__init__(
            description=description, epilog=epilog, formatter_class=_HelpFormatter, allow_abbrev=False, **others
        )
        self.late: set[str] = set()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002 - the base class's
        words = " ".join(str(message).split())
        if match := re.fullmatch("unrecognized arguments: (.*)", words):
            words = f"unrecognized arguments: {' '.join(self._shown(match[1].split()))}"
        elif match := re.match(r"(?:argument (\S+)|Parser key \"(\w+)\"): ", words):
            name = match[1] or flag(match[2])
            words = f"{name} {words[match.end() :]}" if name.startswith("-") else words[match.end() :]
        if match := re.search(r"invalid choice: '(.*?)'", words):
            commands = [action.choices for action in self._actions if action.dest == "command"]
            words += meant(match[1], commands[0] or () if commands else ())
        self.exit(2, f"autodistil-search: {without_password(words)[:_LONGEST]} (see --help)\n")

    def _shown(self, arguments: Sequence[str]) -> Iterator[str]:
        """Yield arguments that no flag takes, with the flag that may be meant; what a blank split may be a password."""
        has_storage = any(argument.startswith("--storage") or names_database(argument) for argument in self.args)
        for argument in arguments:
            if re.match("--[a-z]", argument):
                yield argument.partition("=")[0] + meant(argument.partition("=")[0], self._option_string_actions)
            else:
                yield HIDDEN if has_storage else argument

    def dump(self, namespace: Any, *options: Any, **others: Any) -> str:
        """Return the settings for `--print_config`."""
        content = namespace.clone()
        if isinstance(content.get("storage"), str):
            content["storage"] = without_password(content["storage"])
        return str(super().dump(content, *options, **others))


class _RefusedError(ArgumentTypeError, ValueError):
    """A value that a flag does not take, on the command line or in a YAML file."""


def _text(value: Any) -> Any:
    """Return text that a file can hold; what else a YAML file gives is left to the settings' class."""
    if isinstance(value, str) and ("\0" in value or value != value.encode(errors="ignore").decode()):
        raise _RefusedError(f"{quoted(value)}; allowed: text in UTF-8")
    return value


def _whole_number(value: Any) -> Any:
    """Return the whole number that text is, likewise."""
    if isinstance(value, str) and (value := parse_whole_number(text := value)) is None:
        raise _RefusedError(f"{quoted(text)}; allowed: whole numbers (int) of at most 18 digits")
    return value


def _number(value: Any) -> Any:
    """Return the finite number that text is, likewise."""
    if isinstance(value, str) and (value := parse_number(text := value)) is None:
        raise _RefusedError(f"{quoted(text)}; allowed: finite numbers (float)")
    return float(value) if isinstance(value, int) and is_finite(value) else value


class _ConfigFile(ActionConfigFile):  # type: ignore[misc]
    """Takes settings from a YAML file, or from YAML text on the command line."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:  # noqa: ARG002
        content, name = _given_yaml(values)
        known = {
            action.dest: action
            for action in parser._actions
            if action.option_strings and action.dest not in ("help", "config", "print_config", "==SUPPRESS==")
        }
        if not isinstance(content, dict):
            raise InputError(f"{name} holds {type(content).__name__}; allowed: settings by name: {', '.join(known)}")
        for key, value in content.items():
            if (action := known.get(key)) is None:
                raise InputError(
                    f"{name} has the unknown setting {quoted(key)}{meant(key, known)}; allowed: {', '.join(known)}"
                )
            if action.nargs == 0 and not isinstance(value, bool):
                raise InputError(f"{name}: {key} {quoted(value)}; allowed: true or false")
            cfg[key] = _taken(action, value, f"{name}: {key}")
        cfg[self.dest] = [*(cfg.get(self.dest) or []), values]


def _taken(action: Any, value: Any, what: str) -> Any:
    """Return the value of a setting in a YAML file as its flag takes it; `what` names it in errors."""
    if action.nargs == "+":
        values = [value] if isinstance(value, str) else value
        if value is not None and not (isinstance(values, list) and all(isinstance(text, str) for text in values)):
            raise InputError(f"{what} {quoted(value)}; allowed: text, or a list of it")
        return values
    try:
        return action.type(value) if action.type and action.nargs is None else value
    except _RefusedError as error:
        raise InputError(f"{what} {error}") from None


def _given_yaml(text: str) -> tuple[Any, str]:
    """Return what `--config` names, or says itself, and what to call it."""
    if not os.path.lexists(text) and ":" in text:
        return parse_yaml(text, "--config"), "--config"
    return read_yaml(Path(text)), f"--config {text}"


def _examples(name: str) -> str:
    return "\n".join(["examples:", *(f"  {line}" for line in _EXAMPLES[name])])


def _add_plan(parser: _Parser) -> None:
    parser.add_argument("--tokens", type=_text, required=True, help="Tokens to train on, such as 26B.")
    parser.add_argument("--devices", type=_whole_number, default=1, help="Devices that share each step.")
    parser.add_argument("--batch-size", type=_whole_number, help="Blocks in a step of all devices; 4 for each.")
    parser.add_argument(
        "--flops-per-second", type=_text, help="What a device sustains, such as 100T; else it is measured here."
    )
    _add_settings(parser, TrainConfig, _PLANNED)


def _add_worker(parser: _Parser) -> None:
    parser.add_argument("--storage", type=_text, required=True, help="A database's URL, or the path of a journal file.")
    parser.add_argument("--study", type=_text, default=SearchConfig.study, help="Name of the study there.")
    parser.add_argument("--superlm", type=_text, help="Folder of the search, if it has another path here.")
    parser.add_argument("--patience", type=_number, help="Seconds without work after which to leave.")


def _add_positional_and_settings(parser: _Parser, config: type[Any], positional: str) -> None:
    """All settings of `config`, one of them without a flag."""
    parser.add_argument(positional, type=_text, help=_helps(config)[positional])
    _add_settings(parser, config, {field.name for field in fields(config)} - {positional})


def _add_partition(parser: _Parser) -> None:
    parser.add_argument("space", type=_text, help="Search space: a shipped one's name, or the path of a YAML file.")
    parser.add_argument("--k", type=_whole_number, required=True, help="Number of sub-spaces.")
    parser.add_argument("--to", type=_text, default=".", help="Folder for the YAML files.")


def _add_report(parser: _Parser) -> None:
    parser.add_argument("runs", type=_text, nargs="+", help="Folders of finished searches.")
    parser.add_argument(
        "--to",
        type=_text,
        help="Folder to write to: new, empty, or an earlier report's. If not given, the search's own; of several, one "
        "beside the first.",
    )
    parser.add_argument(
        "--figure",
        action="store_true",
        help="Write figures and tables (PNG, PDF, SVG; Markdown, LaTeX) for papers.",
    )


def _add_completion(parser: _Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"), help="Which shell it is for.")


def _add_export(parser: _Parser) -> None:
    parser.add_argument("model", type=_text, help="Folder of a finished search, distil or finetune, or a student's.")
    parser.add_argument("--to", type=_text, required=True, help="Folder to write: new, empty, or an earlier export.")
    parser.add_argument(
        "--pick",
        type=_text,
        help="Row of the frontier: knee (the default), a number from 1, cheapest first, or bounds such as flops<=200M: "
        "of the rows that keep them, the best in the search's first objective.",
    )
    parser.add_argument(
        "--format",
        type=_text,
        default="auto",
        help="Stock BERT (bert) or MPNet (mpnet), with its own modelling file (own), or the first that can be (auto).",
    )
    parser.add_argument("--onnx", action="store_true", help="Write model.onnx, checked against PyTorch (extra onnx).")
    parser.add_argument("--int8", action="store_true", help="Write model_int8.onnx, too, and say what it costs.")
    parser.add_argument("--teacher", type=_text, help="Teacher to compare with, if not the search's.")
    parser.add_argument("--task", type=_text, help="Task to measure a fine-tuned student on, in every runtime.")
    parser.add_argument("--license", type=_text, help="Licence of the weights, for the card, such as apache-2.0.")
    parser.add_argument("--push-to-hub", type=_text, metavar="REPO_ID", help="Upload the folder to the hub.")
    parser.add_argument("--public", action="store_true", help="Let everyone see the repository; else it is private.")


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


def _add_settings(parser: _Parser, config: type[Any], names: Container[str] | None = None) -> None:
    """A flag for each field of `config`, or those of `names`: its type, default and help taken from there."""
    parser.add_argument("--config", action=_ConfigFile, help="A YAML file with any of these settings.")
    types = get_type_hints(config)
    helps = _helps(config)
    for setting in fields(config):
        if names is not None and setting.name not in names:
            continue
        parser.late.add(setting.name)
        kinds = {get_origin(kind) or kind for kind in (types[setting.name], *get_args(types[setting.name]))}
        name, about = flag(setting.name), helps[setting.name]
        if setting.name == "text":  # several files behind one flag, as a shell's *.txt gives them
            parser.add_argument(name, type=_text, nargs="+", help=about)
        elif setting.name == "constraint":
            parser.add_argument(name, type=_text, action="append", help=about)
        elif bool in kinds:
            parser.add_argument(name, action="store_true", help=about)
        else:
            kind = _whole_number if int in kinds else _number if float in kinds else _text
            parser.add_argument(name, type=kind, default=setting.default, help=about)


_PARSERS: dict[str, tuple[str, str, Callable[[_Parser], None] | None]] = {
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


def make_parser() -> _Parser:
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
    open_closed_streams()
    try:
        return _answer(sys.argv[1:] if argv is None else list(argv))
    finally:
        flush()


def _answer(argv: Sequence[str]) -> int:
    """Parse, run and say how it ended."""
    command = None
    try:
        command, settings = _parse(argv)
        return _run(command, settings)
    except KeyboardInterrupt:
        _complain("stopped; the same command goes on from here")
        return 130
    except Terminated as error:
        _complain(error)
        return 143
    except Exception as error:
        if came_of_memory(error):
            _complain(_out_of_memory(command))
            return 1
        if isinstance(error, InputError):
            _complain(error)
            return 2
        if isinstance(error, FloatingPointError | OSError | ScoringError | ExportError):
            _complain(error)
            return 1
        raise


def _parse(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the command and its settings; those that their class has defaults for, only if they were given."""
    parser = make_parser()
    parsed = parser.parse_args(argv)
    command: str = parsed.command
    given = make_parser().parse_args(argv, defaults=False, _skip_validation=True)[command]
    late = _command_parsers(parser)[command].late
    settings = {name: value for name, value in parsed[command].as_dict().items() if name not in late or name in given}
    return command, settings


def _command_parsers(parser: _Parser) -> Mapping[str, _Parser]:
    found: Any = next(action.choices for action in parser._actions if action.dest == "command")
    return dict(found)


def _run(command: str, settings: dict[str, Any]) -> int:
    """Run a command and print its result, from one of the processes that were started together."""
    from autodistil_search.base.progress import ConsoleReporter, Reporter, plain_console

    settings.pop("config", None)
    as_json, quiet = settings.pop("json", False), settings.pop("quiet", False)
    # Whatever a library or a plugin prints is not the result.
    with warnings.catch_warnings(), messages_on_stderr():
        warnings.showwarning = lambda message, *_: _complain(f"warning: {message}")
        reporter = Reporter() if quiet or not is_main() else ConsoleReporter(plain_console(stderr=True))
        outcome = {**COMMANDS, "completion": _completion}[command](settings, reporter)
    if is_main():
        _print(outcome, as_json)
    return outcome.code


def _print(outcome: Outcome, as_json: bool) -> None:
    """Print a result; a reader that has left has what it wanted."""
    try:
        outcome.print(as_json)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # which rich makes of it
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise OSError(f"what was found is kept, but cannot be printed: {error.strerror}") from None


_SAVES_MEMORY = {
    "--accumulate": "a larger --accumulate",
    "--batch-size": "a smaller --batch-size",
    "--eval-blocks": "fewer --eval-blocks",
    "--throughput-batch": "a smaller --throughput-batch",
    "--max-length": "a shorter --max-length",
    "--train-rows": "fewer --train-rows",
}


def _out_of_memory(command: str | None) -> str:
    """Say what takes less memory."""
    flags = _command_parsers(make_parser())[command]._option_string_actions if command else ()
    ways = [words for name, words in _SAVES_MEMORY.items() if name in flags]
    return f"out of memory; what was done is kept; try {', '.join([*ways, 'or a machine with more memory'])}"


def _completion(settings: Mapping[str, Any], _: Reporter) -> Outcome:
    from autodistil_search.cli.completion import completion_script

    return Outcome({}, lambda _: print(completion_script(make_parser(), settings["shell"])))


def _complain(message: object) -> None:
    """One line on standard error, from one of the processes that were started together."""
    if is_main():
        try:
            print(f"autodistil-search: {without_password(str(message))}", file=sys.stderr)
        except OSError:
            discard(sys.stderr)
