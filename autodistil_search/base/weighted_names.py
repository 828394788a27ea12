"""Names with weights on the command line, such as `qq,kk,vv:0.5`: the relations of the loss, the subnets of a step."""

from __future__ import annotations

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import parse_number

RELATIONS = ("qq", "kk", "vv", "qk")
"""Relations between queries, keys and values: three of MiniLMv2 (arXiv 2012.15828), and attention itself."""

ROLES = ("largest", "smallest", "random")
"""What a subnet can be in a training step."""

TERMS = ("labels", "logits", "embeddings", "hidden", "attention")
"""What a student can be trained by on a task: the labels, or what a fine-tuned teacher gives for the same rows."""

Weights = tuple[tuple[str, float], ...]


def parse_relations(text: str) -> Weights:
    """The relations of the loss and their weights: "qq,kk,vv:0.5" has weights 1, 1 and 0.5.

    Raises:
        InputError: for an unknown relation, one named twice, or a weight that is not a number above 0.
    """
    return _parse(text, RELATIONS, "--relations")


def parse_subnet_weights(text: str) -> dict[str, float]:
    """How much the loss of a subnet counts by its role: "largest:2" counts the others' once. All alike if empty.

    Raises:
        InputError: for an unknown role, one named twice, or a weight that is not a number above 0.
    """
    return dict.fromkeys(ROLES, 1.0) | dict(_parse(text, ROLES, "--subnet-weights") if text.strip() else ())


def parse_terms(text: str) -> dict[str, float]:
    """The losses of task distillation and their weights: "labels,logits:2" counts the second twice.

    Raises:
        InputError: for an unknown term, one named twice, or a weight that is not a number above 0.
    """
    return dict(_parse(text, TERMS, "--losses"))


def _parse(text: str, allowed: tuple[str, ...], flag: str) -> Weights:
    parts = [part.strip().partition(":") for part in text.split(",")]
    names = [name for name, _, _ in parts]
    if len(set(names)) < len(names) or not set(names) <= set(allowed):
        raise InputError(f"{flag} {text!r}; allowed: one or more of {', '.join(allowed)}, each once")
    return tuple((name, _weight(flag, name, weight) if colon else 1.0) for name, colon, weight in parts)


def _weight(flag: str, name: str, text: str) -> float:
    if not (weight := parse_number(text) or 0.0) > 0:
        raise InputError(f"{flag}: {name} has weight {text!r}; allowed: numbers above 0, such as {name}:0.5")
    return weight
