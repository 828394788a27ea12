"""The settings of `plan`: those of a training on which its cost depends, and what is stated about the devices."""

from __future__ import annotations

PLANNED = (
    *("space", "depth", "teacher", "teacher_layer", "seq_len", "loss", "relations", "relation_heads", "sampling"),
    *("random_subnets", "subnet_weights", "in_place", "hidden", "seed", "device", "precision", "keep"),
)
"""Settings of a training on which a plan depends, besides `OWN`."""

OWN = (
    *("steps", "tokens", "devices", "batch_size", "device_name"),
    *("flops_per_second", "bandwidth", "launch_microseconds"),
)
"""Further arguments of a plan."""
