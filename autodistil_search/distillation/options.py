"""Settings of a training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainOptions:
    """Settings on which the weights depend, besides model, teacher and text.

    steps: number of training steps.
    batch_size: blocks in a step, over all processes.
    lr: peak learning rate.
    seed: seed of subnets and blocks.
    loss: name of the relation loss, one of `relation_loss.LOSSES`.
    relations, relation_heads: relations in the loss (`weighted_names.parse_relations`) and their number of heads.
    sampling, random_subnets, subnet_weights: arguments of `sampling.draw`.
    in_place: share of a subnet's loss that is taken against the relations of the largest subnet instead of the
        teacher's (in-place distillation, Yu and Huang, arXiv 1903.05134). It requires a sampling that trains the
        largest subnet.
    hidden: weight of `layer_losses.LastHidden` besides the relation loss; 0 trains by relations alone.
    """

    steps: int
    batch_size: int
    lr: float
    seed: int
    loss: str = "kl"
    sampling: str = "largest-random"
    relation_heads: int = 16
    relations: str = "qq,kk,vv"
    random_subnets: int | None = None
    subnet_weights: str = ""
    in_place: float = 0.0
    hidden: float = 0.0


@dataclass(frozen=True)
class Execution:
    """Settings of a training on which its weights do not depend, except for rounding.

    accumulate: number of parts into which each process divides its rows of a batch; one part is in memory at a time.
    compile: True to run layers through `torch.compile`.
    cuda_graphs: True to record the passes of subnets as CUDA graphs.
    keep: number of last checkpoints that are kept.
    """

    accumulate: int = 1
    compile: bool = False
    cuda_graphs: bool = False
    keep: int = 2
