"""What a configuration stands for: spaces, objectives, teacher and text, loaded and checked before any training."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from autodistil_search.base.device import Device, choose_device
from autodistil_search.base.errors import InputError
from autodistil_search.base.files import EXPORT_RECORD, read_json
from autodistil_search.base.plugins import Plugins, shown
from autodistil_search.base.progress import Reporter
from autodistil_search.nas import hardware, objectives
from autodistil_search.nas.engines.base import ENUMERABLE
from autodistil_search.nas.engines.registry import ENGINES, MakeEngine, guarded_engine
from autodistil_search.nas.hardware import Load
from autodistil_search.nas.latency_predictor import Predictor
from autodistil_search.nas.objectives import COSINE, HIDDEN, PROBE, RELATION, TASK, Constraint, Objective
from autodistil_search.nas.pareto import box_of
from autodistil_search.nas.proxies import HIDDEN_KIND, ProxyKind, TaskBudget, task_proxy
from autodistil_search.runs.named_parts import named_part, plugged
from autodistil_search.runs.training_inputs import TrainingInputs, resolve_training
from autodistil_search.settings.search import BASELINES, SearchConfig
from autodistil_search.spaces.search_space import SearchSpace
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilConfig, AutoDistilModel
from autodistil_search.teachers.loading import load_as_student
from autodistil_search.teachers.teacher import Teacher

MARGIN = 1.01
"""A cost's box ends this factor above the greatest cost, so that the subnet of that cost counts too."""
_TRIED = 1_000
"""Random subnets of a space too large to list on which costs are tried before training."""
_COLUMNS = frozenset(
    {
        *objectives.RESERVED,
        *objectives.NAMES,
        *(objective.name for objective in (objectives.RELATION_LOSS, objectives.RELATION_MSE, objectives.HIDDEN_LOSS)),
    }
)
"""Columns that are ours, which no plug-in can have."""


@dataclass(frozen=True, kw_only=True)
class SearchInputs(TrainingInputs):
    """What a `SearchConfig` stands for, loaded and checked."""

    config: SearchConfig
    objectives: Sequence[Objective]
    constraints: Sequence[Constraint]
    make_engine: MakeEngine
    proxy_kind: ProxyKind | None
    """None for the relation loss."""
    given_baselines: Mapping[str, AutoDistilModel]
    """Models that `--baselines` names."""
    predictor: Predictor
    """Of latency; fitted before the search, if an objective or a bound asks for it."""

    @cached_property
    def identity(self) -> dict[str, str]:
        """Digests of what the flags only name, that of a proxy's labelled rows among them."""
        known = {**super().identity}
        return known | {"proxy_task": self.proxy_kind.digest} if self.proxy_kind and self.proxy_kind.digest else known

    @property
    def predicts(self) -> bool:
        """Whether anything asks for the predictor."""
        return any(column.name == objectives.PREDICTED_LATENCY for column in self.columns)

    def measured_latency(self, student: nn.Module) -> dict[str, float]:
        """Latency as it is, of what may be predicted: median and distance of the quartiles, in milliseconds."""
        return hardware.latency(student, Load(self.config.latency_batch, self.config.measured_seq_len, self.device))

    def fit_predictor(self) -> dict[str, Any]:
        """What `Predictor.take` needs: both ends and random subnets of each space are measured."""
        rng = random.Random(self.config.seed)
        subnets: list[Subnet] = []
        for space in self.spaces:
            drawn = dict.fromkeys(space.ends)
            for _ in range(100 * self.config.latency_samples):
                if len(drawn) >= min(self.config.latency_samples, space.size):
                    break
                drawn[space.sample(rng)] = None
            subnets += drawn
        return self.predictor.fit(subnets, lambda subnet: self.measured_latency(self.student(subnet))["latency"])

    @property
    def columns(self) -> list[Objective]:
        """All that is measured on a subnet: objectives, what is bounded, and the costs that every run states."""
        bounded = (constraint.objective for constraint in self.constraints)
        return list(dict.fromkeys((*self.objectives, *bounded, objectives.FLOPS, objectives.PARAMS)))

    @property
    def proxy_objective(self) -> Objective | None:
        """The column that must be measured on a trained SuperLM."""
        return next((column for column in self.columns if column.is_proxy), None)

    @property
    def free_objectives(self) -> list[Callable[[Subnet], float] | None]:
        """Each objective as a minimised function of the sizes; None where it must be measured."""
        return [objective.free(self.teacher.vocabulary) for objective in self.objectives]

    @property
    def measured_constraints(self) -> list[Constraint]:
        """The constraints that no one can check before a subnet is scored."""
        return [constraint for constraint in self.constraints if constraint.objective.cost is None]

    def admits(self, subnet: Subnet) -> bool:
        """Whether `subnet` keeps the constraints on what follows from its sizes."""
        vocabulary = self.teacher.vocabulary
        return all(
            constraint.excess(constraint.objective.cost_of(subnet, vocabulary)) <= 0
            for constraint in self.constraints
            if constraint.objective.cost is not None
        )

    def cost_range(self, objective: Objective, space: SearchSpace) -> tuple[float, float]:
        """Return the least and the greatest cost of a space's subnets.

        Exact for spaces that can be listed and for costs that grow with every size, as our own do. In larger spaces it
        is that of the smallest and the largest subnet; see `check_within_box`.
        """
        grows = objective in objectives.COSTS or objective.name == objectives.PREDICTED_LATENCY
        listed = not grows and space.size <= ENUMERABLE
        subnets = map(space.decode, space.genomes()) if listed else iter(space.ends)
        values = [objective.cost_of(subnet, self.teacher.vocabulary) for subnet in subnets]
        return min(values), max(values)

    def cost_box(self, objective: Objective) -> tuple[float, float]:
        """Return the ideal and the reference value of a cost over all spaces."""
        lows, highs = zip(*(self.cost_range(objective, space) for space in self.spaces), strict=True)
        return box_of(min(lows), max(highs), objective.direction == "maximize", MARGIN)

    def check_within_box(self, space: SearchSpace, subnet: Subnet, measured: Mapping[str, float]) -> None:
        """Refuse a cost that is not between those of the smallest and the largest subnet of a space too large to list.

        Raises:
            InputError: naming the objective, the subnet and the range.
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
                    f"{space.name!r}, and {low:g} to {high:g} for its smallest and largest; allowed: costs between "
                    f"these, or spaces of at most {ENUMERABLE:,} subnets, whose costs are all computed"
                )

    def student(self, subnet: Subnet) -> AutoDistilModel:
        """A student of those sizes with random weights, for what does not depend on them."""
        return AutoDistilModel(self.teacher.student_config(subnet))


def _check_costs(inputs: SearchInputs, space: SearchSpace) -> None:
    """Try every cost that is not ours before anything is trained: on all subnets of a space, or on a sample."""
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
            known = {objective.name: objective.cost_of(subnet, vocabulary) for objective in others}
            inputs.check_within_box(space, subnet, known)


def resolve_search(
    config: SearchConfig,
    reporter: Reporter | None = None,
    plugins: Plugins | None = None,
    begun: bool = False,
    trains: bool = True,
) -> SearchInputs:
    """Load and check all that `config` names, before anything is trained.

    begun: Whether the search began before. Bounds on what is measured are not tried out again then: the machine may be
        busier now.
    trains: Whether SuperLMs may have to be trained here; those that `--superlm` names never have.

    Raises:
        InputError: for whatever cannot be used.
    """
    plugins = plugins or Plugins()
    make_engine: MakeEngine = named_part(plugins, "engines", "--engine", config.engine, ENGINES)
    if config.engine not in ENGINES:
        make_engine = guarded_engine(config.engine, make_engine)
    kind = _proxy_kind(config, plugins)
    for note in kind.notes if kind is not None else ():
        (reporter or Reporter()).say(note)
    device = choose_device(config.device, config.precision)
    predictor = Predictor()
    known = known_objectives(config, device, plugins, kind, predictor)
    installed = plugins.names("objectives")
    wanted = objectives.parse_objectives(config.objectives, known, installed)
    constraints = [objectives.parse_constraint(text, known, others=installed) for text in config.constraints]
    columns = [*wanted, *(constraint.objective for constraint in constraints)]
    trains = trains and config.superlm is None
    found = resolve_training(config, reporter, any(column.is_proxy for column in columns), plugins, trains)
    given = {name: _given(name, found.teacher, kind) for name in config.baseline_names if name not in BASELINES}
    inputs = SearchInputs(
        config=config,
        spaces=found.spaces,
        device=found.device,
        teacher=found.teacher,
        text=found.text,
        objectives=wanted,
        constraints=constraints,
        make_engine=make_engine,
        proxy_kind=kind,
        given_baselines=given,
        predictor=predictor,
    )
    if any(column.name in (*objectives.MEASURED, objectives.PREDICTED_LATENCY) for column in columns):
        check_measured_length(config.measured_seq_len, found.teacher)
    for space in found.spaces:
        _check_costs(inputs, space)
        _check_constraints(inputs, space, begun)
    return inputs


def _given(name: str, teacher: Teacher, kind: ProxyKind | None) -> AutoDistilModel:
    """A model that is to be scored as it is."""
    if kind is None and Path(name, EXPORT_RECORD).is_file():
        config = read_json(Path(name, "config.json"))
        if config.get("model_type") != AutoDistilConfig.model_type:
            raise InputError(
                f"baseline {name!r} is a student exported as stock BERT or MPNet, whose padded heads give other "
                "relations; allowed: an export with --format own, or --proxy probe:TASK or task:TASK"
            )
    return load_as_student(name, teacher)


def _proxy_kind(config: SearchConfig, plugins: Plugins) -> ProxyKind | None:
    """What `--proxy` names; None for the relation loss."""
    if config.proxy.startswith((COSINE, PROBE, TASK)):
        budget = TaskBudget(config.proxy_rows, config.proxy_epochs, config.proxy_lr, config.seed)
        return task_proxy(config.proxy, budget, config.proxy_columns, config.proxy_label_column)
    own = {RELATION: None, HIDDEN: HIDDEN_KIND}
    found = named_part(
        plugins, "proxies", "--proxy", config.proxy, own, [f"{kind}NAME" for kind in (COSINE, PROBE, TASK)]
    )
    if config.proxy in own:
        return own[config.proxy]
    if not isinstance(found, ProxyKind):
        raise InputError(f"--proxy {config.proxy!r} is {shown(found)}; allowed: a ProxyKind")
    objectives.checked_objective(found.objective, config.proxy, _COLUMNS, is_proxy=True)
    return found


def check_measured_length(seq_len: int, teacher: Teacher) -> None:
    """Refuse to measure students with more tokens than they have positions for."""
    if seq_len > teacher.vocabulary.positions:
        raise InputError(
            f"--measured-seq-len {seq_len}; the teacher has positions for 1 to {teacher.vocabulary.positions}"
        )


def known_objectives(
    config: SearchConfig,
    device: Device,
    plugins: Plugins,
    kind: ProxyKind | None = None,
    predictor: Predictor | None = None,
) -> dict[str, Objective]:
    """Every objective by the name that asks for it; of what others offer, only what `config` asks for is loaded."""
    single, many = (
        Load(batch, config.measured_seq_len, device) for batch in (config.latency_batch, config.throughput_batch)
    )
    proxy = kind.objective if kind else objectives.proxy_objective(config.loss, config.relations)
    named = {each.name: each for each in (*objectives.COSTS, *objectives.measured_costs(single, many))}
    if predictor is not None:
        named[objectives.PREDICTED_LATENCY] = objectives.predicted_latency(predictor, single)
    asked = {word for text in (config.objectives, *config.constraints) for word in re.split(r"[\s,<>=]+", text)}
    others: dict[str, Objective] = {}
    for name in plugins.all_names("objectives"):
        if name in asked:
            taken = {*_COLUMNS, proxy.name, *(objective.name for objective in others.values())}
            others[name] = objectives.checked_objective(plugged(plugins, "objectives", name), name, taken)
    return {"acc": proxy, **named, **others}


def _check_constraints(inputs: SearchInputs, space: SearchSpace, begun: bool) -> None:
    """Refuse constraints that no subnet of `space` keeps; what is measured is measured on its ends."""
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
