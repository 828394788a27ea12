"""Time of training a search's baselines together against one by one: ratios in one run, as a Markdown table.

    python benchmarks/baselines.py [--teacher FOLDER] [--steps 20] [--rates 0.5,1]

Baselines that learn by the same losses share each batch and the teacher's outputs. Both ways have the same text, starts
and steps, and must end with the same weights. Times are CPU seconds of this process with one thread, without loading
and scoring; they hardly depend on other processes. Students start from slices, which takes next to no time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from autodistil_search import SearchConfig
from autodistil_search.base.files import read_json
from autodistil_search.base.manifest import TRAINER_STATE
from autodistil_search.nas.baseline_training import Bench, RecipeGroup, grouped
from autodistil_search.runs.scoring import Scorer
from autodistil_search.runs.search_inputs import resolve_search


def seconds_and_weights(bench: Bench, groups: list[RecipeGroup]) -> tuple[float, dict[str, str]]:
    """Return the CPU seconds of training the groups one after another, and the digest of each model's weights."""
    start = time.process_time()
    for group in groups:
        trainings = [training for recipe in group.recipes for training in bench._trainings(recipe)]
        for pack in bench._packs(trainings):
            if (error := bench._train(pack)) is not None:
                raise error
    seconds = time.process_time() - start
    states = bench.cache.glob(f"baselines/*/{TRAINER_STATE}")
    return seconds, {path.parent.name: read_json(path)["sha256"] for path in states}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="packaged")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rates", default="0.5,1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = SearchConfig(
        space="tiny",
        teacher=arguments.teacher,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        init="slices",
        baseline_rates=arguments.rates,
    )
    inputs = resolve_search(config)
    print("| baselines | trainings | together s | one by one s | together / one by one |\n|---|--:|--:|--:|--:|")
    for word in ("shapes", "tinybert", "minilm"):
        with tempfile.TemporaryDirectory() as folder:
            bench = replace(Scorer(inputs, {}, cache=Path(folder)).bench, cache=Path(folder) / "together")
            recipes = [
                recipe
                for recipe in bench.recipes([word], inputs.spaces, config.baseline_factors)
                if not bench._is_copy(recipe)
            ]
            joint, weights = seconds_and_weights(bench, grouped(recipes))
            apart = [
                RecipeGroup((replace(recipe, factors=(factor,)),)) for recipe in recipes for factor in recipe.factors
            ]
            alone, same = seconds_and_weights(replace(bench, cache=Path(folder) / "apart"), apart)
        assert weights == same, "weights differ"
        print(f"| {word} | {len(apart)} | {joint:.0f} | {alone:.0f} | {joint / alone:.2f} |", flush=True)


if __name__ == "__main__":
    main()
