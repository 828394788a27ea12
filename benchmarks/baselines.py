"""Time of a step of a search's baselines that train together against each by itself: ratios, as a Markdown table.

    python benchmarks/baselines.py [--teacher FOLDER] [--steps 5] [--rates 0.5,1]

Baselines that learn by the same losses share each batch and the teacher's outputs. A step is the passes, the gradients
and the updates of all trainings of a word of `--baselines`, after one step that does not count. Times are CPU seconds
of this process with one thread, which hardly depend on other processes. Starts, checkpoints and scores do not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from autodistil_search import SearchConfig
from autodistil_search.distillation.teacher_batches import Batch
from autodistil_search.distillation.training_loop import _in_training
from autodistil_search.distillation.training_step import ModelInTraining, subnets_of_step
from autodistil_search.runs.scoring import Scorer
from autodistil_search.runs.search_inputs import SearchInputs, resolve_search


def trainings_of(word: str, inputs: SearchInputs, cache: Path) -> list[ModelInTraining]:
    """Return the trainings of the baselines that a word stands for, at each rate."""
    bench = Scorer(inputs, {}, cache=cache).bench
    recipes = bench.recipes([word], inputs.spaces, inputs.config.baseline_factors)
    trainings = [entry for recipe in recipes if not bench._is_copy(recipe) for entry in bench._trainings(recipe)]
    proxy = partial(bench._own_proxy, trainings[0].options)
    begun = [bench._begun(training, {}, proxy) for training in trainings]
    return [_in_training(entry, inputs.teacher, inputs.execution, inputs.device) for entry in begun]


def step_seconds(trainings: Sequence[ModelInTraining], inputs: SearchInputs, steps: int) -> float:
    """Return the CPU seconds of a step of trainings that share a batch, as a mean over `steps` steps."""
    assert inputs.text is not None
    options, config = trainings[0].options, inputs.config
    by_layer = trainings[0].transfer is not None
    teacher = inputs.teacher if by_layer or inputs.device.precision == "fp32" else inputs.teacher.cast(inputs.device)
    ids = inputs.text.held_out.spread(config.batch_size)
    start = 0.0
    for step in range(steps + 1):
        if step == 1:
            start = time.process_time()
        batch = Batch(ids, 1.0, True, teacher, options)
        for training in trainings:
            training.begin(subnets_of_step(training.model, options, step))
        for training in trainings:
            training.learn(batch)
        for training in trainings:
            training.update(step, ())
    return (time.process_time() - start) / steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="packaged")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rates", default="0.5,1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = SearchConfig(
        space="tiny",
        teacher=arguments.teacher,
        batch_size=arguments.batch_size,
        baseline_rates=arguments.rates,
        init="slices",
    )
    inputs = resolve_search(config)
    print(f"{inputs.teacher.name}, {config.batch_size} x {config.seq_len} tokens, {inputs.device.precision}\n")
    print("| baselines | trainings | together s | one by one s | together / one by one |\n|---|--:|--:|--:|--:|")
    for word in ("shapes", "tinybert", "minilm"):
        with tempfile.TemporaryDirectory() as cache:
            trainings = trainings_of(word, inputs, Path(cache))
        joint = step_seconds(trainings, inputs, arguments.steps)
        apart = sum(step_seconds([training], inputs, arguments.steps) for training in trainings)
        cells = f"{joint:.2f} | {apart:.2f} | {joint / apart:.2f}"
        print(f"| {word} | {len(trainings)} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
