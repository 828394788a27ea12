"""Parsing of weighted names of the command line, such as `qq,kk,vv:0.5`: relations, roles of subnets, loss terms."""

from __future__ import annotations

from autodistil_search.base.errors import InputError
from autodistil_search.base.user_input import parse_number

RELATIONS = ("qq", "kk", "vv", "qk")
"""Relations between queries, keys and values: the three of MiniLMv2 (arXiv 2012.15828), and attention itself."""

ROLES = ("largest", "smallest", "random")
"""Roles of subnets in a training step."""

TERMS = ("labels", "logits", "embeddings", "hidden", "attention")
"""Loss terms for training a student on a task: the labels, or outputs of a fine-tuned teacher for the same rows."""

Weights = tuple[tuple[str, float], ...]


def parse_relations(text: str) -> Weights:
    """Return the relations of the loss and their weights: "qq,kk,vv:0.5" has weights 1, 1 and 0.5.

    Raises:
        InputError: for an unknown or repeated relation, or a weight that is not a number above 0.
    """
    return _parse(text, RELATIONS, "--relations")


def parse_subnet_weights(text: str) -> dict[str, float]:
    """Return the weight of a subnet's loss by its role: "largest:2" leaves the other roles at 1; empty text all.

    Raises:
        InputError: for an unknown or repeated role, or a weight that is not a number above 0.
    """
    return dict.fromkeys(ROLES, 1.0) | dict(_parse(text, ROLES, "--subnet-weights") if text.strip() else ())


def parse_terms(text: str) -> dict[str, float]:
    """Return the losses of task distillation and their weights: "labels,logits:2" has weights 1 and 2.

    Raises:
        InputError: for an unknown or repeated term, or a weight that is not a number above 0.
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
