"""What the frontier is held against: published results with their sources, and hand-designed shapes measured here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
from torch import Tensor

from autodistil_search import __version__
from autodistil_search.corpus import TrainingText
from autodistil_search.device import Device
from autodistil_search.distill import TrainOptions, distill
from autodistil_search.model import AutoDistilModel
from autodistil_search.objectives import Objective, costs
from autodistil_search.progress import Reporter
from autodistil_search.proxies import Proxy
from autodistil_search.schedule import seeded
from autodistil_search.space import Subnet
from autodistil_search.start import start_from
from autodistil_search.teacher import Teacher, truncated

SHAPES = {
    "TinyBERT 4x312": Subnet(layers=4, hidden_size=312, ffn_size=1200, heads=12, head_dim=26),
    "MiniLM 3x384": Subnet(layers=3, hidden_size=384, ffn_size=1536, heads=12, head_dim=32),
    "MiniLM 6x384": Subnet(layers=6, hidden_size=384, ffn_size=1536, heads=12, head_dim=32),
}
"""Shapes of TinyBERT (arXiv 1909.10351) and MiniLM (arXiv 2002.10957), which `measure` distils on equal terms."""

COPY = "copy of the teacher, not trained"
DISTILLED = "distilled alone"
AS_IT_IS = "scored as it is"
NAMED_SHAPES, TRUNCATED = "shapes", "truncated"
"""What `--baselines` calls `SHAPES`, and half of the teacher."""


@dataclass(frozen=True)
class Baseline:
    """A hand-designed shape, measured as the subnets are."""

    name: str
    subnet: Subnet
    how: str
    measured: Mapping[str, float]


def published() -> pd.DataFrame:
    """Published GLUE dev results, each row with its source. FLOPs are multiply-adds at 128 tokens."""
    return pd.read_csv(Path(__file__).with_name("baselines.csv"))


def measure(
    names: Sequence[str],
    given: Mapping[str, AutoDistilModel],
    teacher: Teacher,
    begin_text: Callable[[], TrainingText],
    proxy: Proxy,
    columns: Sequence[Objective],
    options: TrainOptions,
    init: str,
    sample_ids: Tensor,
    identity: dict[str, str],
    cache: Path,
    device: Device,
    reporter: Reporter,
) -> list[Baseline]:
    """Score what `names` asks for as the SuperLM's subnets are scored.

    "shapes" distils each of `SHAPES` for the same steps, text, start and loss as the SuperLM. "truncated" is the
    teacher's first half of layers. Other names are models in `given`, which score as they are. Trained shapes are kept
    under `cache`, so that a later run with the same settings only scores them. A shape that is the teacher's own is not
    trained if it starts from the teacher and has a place for all of it: it is the teacher.

    `columns` is what is measured; `identity` is what else the weights depend on: digests of the teacher, of the text
    and so on.
    """
    ready = [(_shown(name), given[name], AS_IT_IS) for name in names if name in given]
    if TRUNCATED in names and (half := truncated(teacher)) is not None:
        layers = half.config.subnet.layers
        ready.append((f"teacher's first {layers} layers", half, "truncated, not trained"))
    results = []
    for name, model, how in ready:
        device.place(model)
        subnet = model.config.subnet
        results.append(Baseline(name, subnet, how, _measure_all(model, subnet, teacher, proxy, columns)))
    options = options_alone(options)
    for name, subnet in SHAPES.items() if NAMED_SHAPES in names else ():
        model = begin_alone(teacher, subnet, options, init, sample_ids)
        how = COPY
        is_copy = init != "random" and subnet == teacher.subnet and teacher.copies_exactly
        if not is_copy or teacher.layer != subnet.layers - 1:
            how = DISTILLED
            settings = {**identity, **asdict(options), **asdict(subnet), "init": init, "version": __version__}
            key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
            distill(
                model, teacher, begin_text(), options, cache / "baselines" / key, device, reporter, f"baseline {name}"
            )
        device.place(model)
        results.append(Baseline(name, subnet, how, _measure_all(model, subnet, teacher, proxy, columns)))
    return results


def _shown(name: str) -> str:
    """A folder's own name, or a hub id."""
    return Path(name).name if Path(name).is_absolute() else name


def options_alone(options: TrainOptions) -> TrainOptions:
    """How a student is trained alone that is to be held against subnets of a SuperLM trained by `options`.

    It trains itself, however the subnets of a SuperLM are chosen and weighed.
    """
    return replace(options, sampling="largest-random", random_subnets=None, subnet_weights="", in_place=0.0)


def begin_alone(
    teacher: Teacher, subnet: Subnet, options: TrainOptions, init: str, sample_ids: Tensor
) -> AutoDistilModel:
    """A student of those sizes before its training; see `start.start_from`."""
    with seeded(options.seed):
        model = AutoDistilModel(teacher.student_config(subnet))
    start_from(model, teacher, init, sample_ids, options.relation_heads)
    return model


def _measure_all(
    model: AutoDistilModel, subnet: Subnet, teacher: Teacher, proxy: Proxy, columns: Sequence[Objective]
) -> dict[str, float]:
    found = costs(columns, subnet, teacher.vocabulary, lambda: model)
    return found | {column.name: proxy.score(model) for column in columns if column.is_proxy}
