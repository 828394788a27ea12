"""The most that rounding may change, for tests that must hold on any processor and number of threads.

Instruction sets, libraries and threads add up in different orders. In any order a sum of n terms is off by at most n u
times the sum of their magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2), where u is half
of the machine epsilon. Two orders differ by at most twice that.
"""

import math

import torch


def rounding(terms: int, magnitude: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """Return the most by which two sums of `terms` numbers, whose magnitudes add up to `magnitude`, may differ."""
    return terms * torch.finfo(dtype).eps * magnitude


def loss_rounding(tokens: int, relations: int = 3) -> float:
    """Return the most by which rounding may change a `kl` relation loss of `tokens` tokens; that of a copy is 0.

    The loss is a cross-entropy less an entropy, each a sum over `relations` of numbers up to log `tokens`, and each of
    these a sum over `tokens` keys. Their mean over all rows counts as 20 terms: torch adds up in pairs, log2 deep.
    """
    return rounding(tokens + 20, relations * math.log(tokens))
