"""The inputs of a search: spaces, objectives, teacher and text, loaded and checked before any training."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from autodistil_search.base.device import Device, choose_device
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import EXPORT_RECORD, read_json
from autodistil_search.base.plugins import Plugins, shown
from autodistil_search.base.progress import Reporter
from autodistil_search.nas import hardware, objectives
from autodistil_search.nas.engines.base import ENUMERABLE
from autodistil_search.nas.engines.registry import ENGINES, MakeEngine, guarded_engine
from autodistil_search.nas.evaluation import DISTURBANCE
from autodistil_search.nas.hardware import Load
from autodistil_search.nas.label_free_proxies import AnyKind, label_free_kinds
from autodistil_search.nas.latency_predictor import Predictor
from autodistil_search.nas.objectives import LABEL_FREE, Constraint, Objective
from autodistil_search.nas.pareto import box_of
from autodistil_search.nas.proxies import RELATIONS, ProxyKind
from autodistil_search.nas.task_proxies import TaskBudget, task_proxy
from autodistil_search.runs.named_parts import (
    OF_TASKS,
    PROXIES_OF_TASKS,
    check_names,
    named_part,
    plugged,
    requested_objectives,
)
from autodistil_search.runs.training_inputs import TrainingInputs, load_spaces, resolve_training
from autodistil_search.settings.search import BASELINES, SearchConfig
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.teachers.loading import load_as_student
from autodistil_search.teachers.teacher import Teacher

if TYPE_CHECKING:
    from autodistil_search.base.executors import AnyExecutor

MARGIN = 1.01
"""Reference value of a cost divided by its greatest value. Above 1, so that the most expensive subnet counts too."""
_TRIED = 1_000
"""Number of random subnets on which the costs of a space too large to list are tried before training."""
_COLUMNS = frozenset(
    {
        *objectives.RESERVED,
        *objectives.NAMES,
        *(proxy.name for proxy in (objectives.RELATION_LOSS, objectives.RELATION_MSE, *objectives.OF_STATES)),
    }
)
"""Built-in columns, which no plug-in can define."""


@dataclass(frozen=True, kw_only=True)
class SearchInputs(TrainingInputs):
    """Inputs of a search that a `SearchConfig` names, loaded and checked."""

    config: SearchConfig
    objectives: Sequence[Objective]
    constraints: Sequence[Constraint]
    make_engine: MakeEngine
    proxy_kind: AnyKind
    given_baselines: Mapping[str, AutoDistilModel]
    """Models that `--baselines` names."""
    predictor: Predictor
    """Predictor of latency, fitted before the search if an objective or a bound needs it."""

    @cached_property
    def identity(self) -> dict[str, str]:
        """Return digests of the contents behind the settings, including the labelled rows of a proxy."""
        digests = {**super().identity}
        return digests | {"proxy_task": self.proxy_kind.digest} if self.proxy_kind.digest else digests

    @property
    def predicts(self) -> bool:
        """Return True if an objective or a bound needs the predictor."""
        return any(column.name == objectives.PREDICTED_LATENCY for column in self.columns)

    def measured_latency(self, student: nn.Module) -> dict[str, float]:
        """Return the measured latency of a student; see `hardware.latency`."""
        return hardware.latency(student, Load(self.config.latency_batch, self.config.measured_seq_len, self.device))

    def fit_predictor(self) -> dict[str, Any]:
        """Measure the two ends and random subnets of each space, and return the argument of `Predictor.take`."""
        rng = random.Random(self.config.seed)
        subnets: list[Subnet] = []
        for space in self.spaces:
            drawn = dict.fromkeys(space.ends)
            for _ in range(100 * self.config.latency_samples):
                if len(drawn) >= min(self.config.latency_samples, space.size):
                    break
                drawn[space.sample(rng)] = None
            subnets += drawn
        disturbances: list[float] = []

        def measure(subnet: Subnet) -> float:
            numbers = self.measured_latency(self.student(subnet))
            disturbances.extend([numbers[DISTURBANCE]] if DISTURBANCE in numbers else [])
            return numbers["latency"]

        return {**self.predictor.fit(subnets, measure), "disturbances": disturbances}

    @property
    def columns(self) -> list[Objective]:
        """Return all columns of a subnet: objectives, bounded quantities, and the costs that every run states."""
        bounded = (constraint.objective for constraint in self.constraints)
        return list(dict.fromkeys((*self.objectives, *bounded, objectives.FLOPS, objectives.PARAMS)))

    @property
    def proxy_objective(self) -> Objective | None:
        """Return the column that must be measured on a trained SuperLM, or None."""
        return next((column for column in self.columns if column.is_proxy), None)

    @property
    def free_objectives(self) -> list[Callable[[Subnet], float] | None]:
        """Return each objective as a minimised function of the sizes, or None if it must be measured."""
        return [objective.free(self.teacher.vocabulary) for objective in self.objectives]

    @property
    def measured_constraints(self) -> list[Constraint]:
        """Return the constraints that can be checked only after a subnet is scored."""
        return [constraint for constraint in self.constraints if constraint.objective.cost is None]

    def admits(self, subnet: Subnet) -> bool:
        """Return True if `subnet` keeps the constraints on quantities that follow from its sizes."""
        vocabulary = self.teacher.vocabulary
        return all(
            constraint.excess(constraint.objective.cost_of(subnet, vocabulary)) <= 0
            for constraint in self.constraints
            if constraint.objective.cost is not None
        )

    def cost_range(self, objective: Objective, space: SearchSpace) -> tuple[float, float]:
        """Return the least and the greatest cost of a space's subnets.

        The range is exact for spaces that can be listed, and for costs that grow with every size, as the built-in costs
        do. Otherwise it is the range between the smallest and the largest subnet; see `check_within_box`.
        """
        grows = objective in objectives.COSTS or objective.name == objectives.PREDICTED_LATENCY
        listed = not grows and space.size <= ENUMERABLE
        subnets = map(space.decode, space.genomes()) if listed else iter(space.ends)
        values = [objective.cost_of(subnet, self.teacher.vocabulary) for subnet in subnets]
        return min(values), max(values)

    def cost_box(self, objective: Objective) -> tuple[float, float]:
        """Return the ideal and the reference value of a cost over all spaces, in this order."""
        lows, highs = zip(*(self.cost_range(objective, space) for space in self.spaces), strict=True)
        return box_of(min(lows), max(highs), objective.direction == "maximize", MARGIN)

    def check_within_box(self, space: SearchSpace, subnet: Subnet, measured: Mapping[str, float]) -> None:
        """Refuse a cost outside the range between the smallest and the largest subnet of a space too large to list.

        Raises:
            InputError: if a cost is outside; the message names the objective, the subnet and the range.
        """
        if space.size <= ENUMERABLE:
            return
        for objective in self.objectives:
            if objective.cost is None or objective in objectives.COSTS:
                continue
            ideal, reference = map(objective.minimised, self.cost_box(objective))
            if not ideal <= objective.minimised(measured[objective.name]) <= reference:
                low, high = self.cost_range(objective, space)
                raise InputError(
                    f"objective {objective.name!r} is {measured[objective.name]:g} for subnet {subnet} of space "
                    f"{space.name!r}, and {low:g} to {high:g} for its smallest and largest; allowed: costs in this "
                    f"range, or spaces of at most {ENUMERABLE:,} subnets, whose costs are all computed"
                )

    def student(self, subnet: Subnet) -> AutoDistilModel:
        """Return a student with random weights, for measurements that do not depend on weights."""
        return AutoDistilModel(self.teacher.student_config(subnet))


def _check_costs(inputs: SearchInputs, space: SearchSpace) -> None:
    """Try the costs of plug-ins before any training, on all subnets of a space or on a sample."""
    others = [
        objective
        for objective in inputs.columns
        if objective.cost is not None
        and objective not in objectives.COSTS
        and objective.name != objectives.PREDICTED_LATENCY
    ]
    for objective in others:
        inputs.cost_range(objective, space)
    if space.size > ENUMERABLE and others:
        rng, vocabulary = random.Random(0), inputs.teacher.vocabulary
        for subnet in (space.sample(rng) for _ in range(_TRIED)):
            costs = {objective.name: objective.cost_of(subnet, vocabulary) for objective in others}
            inputs.check_within_box(space, subnet, costs)


def resolve_search(
    config: SearchConfig,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
    begun: bool = False,
    trains: bool = True,
    executor: AnyExecutor | None = None,
) -> SearchInputs:
    """Load and check the inputs of a search before any training.

    Args:
        config: Settings of the search.
        reporter: Receiver of progress and messages; by default nothing is shown.
        plugins: Parts that `config` may name, in addition to installed ones.
        begun: If True, the search is continued. Bounds on measured quantities are then not tried again, because the
            machine may be busier than before.
        trains: If True, this process may have to train SuperLMs. With `--superlm` it never has to.
        executor: Executor that tokenizes the text.

    Raises:
        InputError: if an input cannot be used.
    """
    plugins = plugins or Plugins()
    make_engine: MakeEngine = named_part(plugins, "engines", "--engine", config.engine, ENGINES)
    if config.engine not in ENGINES:
        make_engine = guarded_engine(config.engine, make_engine)
    kind = _proxy_kind(config, plugins)
    for note in kind.notes:
        (reporter or Reporter()).say(note)
    device = choose_device(config.device, config.precision)
    predictor = Predictor()
    known = known_objectives(config, device, plugins, kind.objective, predictor)
    installed = plugins.names("objectives")
    wanted = objectives.parse_objectives(config.objectives, known, installed)
    constraints = [objectives.parse_constraint(text, known, others=installed) for text in config.constraints]
    columns = [*wanted, *(constraint.objective for constraint in constraints)]
    check_names(config, plugins)
    trains = trains and config.superlm is None
    needs_text = any(column.is_proxy for column in columns)
    training = resolve_training(config, reporter, needs_text, plugins, trains, executor)
    loaded_baselines = {
        name: _load_baseline(name, training.teacher, kind) for name in config.baseline_names if name not in BASELINES
    }
    inputs = SearchInputs(
        config=config,
        spaces=training.spaces,
        device=training.device,
        teacher=training.teacher,
        text=training.text,
        objectives=wanted,
        constraints=constraints,
        make_engine=make_engine,
        proxy_kind=kind,
        given_baselines=loaded_baselines,
        predictor=predictor,
    )
    if any(column.name in (*objectives.MEASURED, objectives.PREDICTED_LATENCY) for column in columns):
        check_measured_length(config.measured_seq_len, training.teacher)
    for space in training.spaces:
        _check_costs(inputs, space)
        _check_constraints(inputs, space, begun)
    return inputs


def _load_baseline(name: str, teacher: Teacher, kind: AnyKind) -> AutoDistilModel:
    """Return the model of a given baseline, which is scored without training."""
    if kind.compares == RELATIONS and Path(name, EXPORT_RECORD).is_file():
        config = read_json(Path(name, "config.json"))
        if config.get("model_type") != AutoDistilConfig.model_type:
            raise InputError(
                f"baseline {name!r} is a student exported as standard BERT or MPNet, whose padded heads give other "
                "relations; allowed: an export with --format own, or a --proxy that does not compare relations"
            )
    return load_as_student(name, teacher)


def _proxy_kind(config: SearchConfig, plugins: Plugins) -> AnyKind:
    """Return the proxy that `--proxy` names."""
    if config.proxy.startswith(OF_TASKS):
        budget = TaskBudget(config.proxy_rows, config.proxy_epochs, config.proxy_lr, config.seed)
        return task_proxy(config.proxy, budget, config.proxy_columns, config.proxy_label_column)
    plugin = named_part(plugins, "proxies", "--proxy", config.proxy, dict.fromkeys(LABEL_FREE), PROXIES_OF_TASKS)
    if config.proxy in LABEL_FREE:
        spaces = load_spaces(config.space_names, config.depth, config.relation_heads, plugins)
        return label_free_kinds(config.loss, config.relations, spaces[0].relation_heads)[config.proxy]
    if not isinstance(plugin, ProxyKind):
        raise InputError(f"--proxy {config.proxy!r} is {shown(plugin)}; allowed: a ProxyKind")
    objectives.checked_objective(plugin.objective, config.proxy, _COLUMNS, is_proxy=True)
    return plugin


def check_measured_length(seq_len: int, teacher: Teacher) -> None:
    """Refuse a measured sequence length greater than the number of positions of a student."""
    if seq_len > teacher.vocabulary.positions:
        raise InputError(
            f"--measured-seq-len {seq_len}; the teacher has positions for 1 to {teacher.vocabulary.positions}"
        )


def known_objectives(
    config: SearchConfig,
    device: Device,
    plugins: Plugins,
    proxy: Objective,
    predictor: Predictor | None = None,
) -> dict[str, Objective]:
    """Return the objectives by name, `proxy` as "acc"; a plug-in is loaded only if `config` names it."""
    single, many = (
        Load(batch, config.measured_seq_len, device) for batch in (config.latency_batch, config.throughput_batch)
    )
    named = {objective.name: objective for objective in (*objectives.COSTS, *objectives.measured_costs(single, many))}
    if predictor is not None:
        named[objectives.PREDICTED_LATENCY] = objectives.predicted_latency(predictor, single)
    requested_names = requested_objectives(config)
    others: dict[str, Objective] = {}
    for name in plugins.all_names("objectives"):
        if name in requested_names:
            taken = {*_COLUMNS, proxy.name, *(objective.name for objective in others.values())}
            others[name] = objectives.checked_objective(plugged(plugins, "objectives", name), name, taken)
    return {"acc": proxy, **named, **others}


def _check_constraints(inputs: SearchInputs, space: SearchSpace, begun: bool) -> None:
    """Refuse constraints that no subnet of `space` keeps. Measured quantities are measured on its two ends."""
    reached, bounded = {}, dict.fromkeys(constraint.objective for constraint in inputs.constraints)
    for objective in bounded:
        if begun and (objective.name == objectives.PREDICTED_LATENCY or objective.measure is not None):
            continue
        if objective.name == objectives.PREDICTED_LATENCY:  # not fitted yet
            reached[objective.name] = [inputs.measured_latency(inputs.student(end))["latency"] for end in space.ends]
        elif objective.cost is not None:
            reached[objective.name] = list(inputs.cost_range(objective, space))
        elif objective.measure is not None:
            reached[objective.name] = [
                objective.measured_on(inputs.student(end), end)[objective.name] for end in space.ends
            ]
    objectives.check_reachable(inputs.constraints, space.name, reached)
    if space.size > ENUMERABLE or any(objective.name == objectives.PREDICTED_LATENCY for objective in bounded):
        return
    if not any(inputs.admits(space.decode(genome)) for genome in space.genomes()):
        together = " and ".join(map(str, inputs.constraints))
        raise InputError(f"--constraint {together}: no subnet of space {space.name!r} keeps all of them")
