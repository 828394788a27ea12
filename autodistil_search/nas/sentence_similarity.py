"""Agreement of a student with its teacher on which passages are alike, without labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autodistil_search.base.device import Device
from autodistil_search.spaces.subnet import Subnet
from autodistil_search.superlm.model import AutoDistilModel
from autodistil_search.teachers.teacher import Teacher

PASSAGES = 256
"""Number of passages in a report; all pairs of them are compared."""
PASSAGES_PER_BLOCK = 8
"""Passages of the proxy `similarity` for each of `--eval-blocks`; by default it has the passages of a report."""
PASSAGE_TOKENS = 32
"""Tokens of a passage, end tokens included: about one sentence. Longer blocks of one text are all alike."""
_AT_ONCE = 32


class SentenceSimilarity:
    """Rank correlation between the sentence similarities of students and those of their teacher.

    A similarity is the cosine between the vectors of two passages. The vectors are pooled from last hidden states as
    the teacher's are. The rank correlation over all pairs is Spearman's rho; 1 means that a student orders all pairs as
    the teacher does.

    Args:
        teacher: Teacher to agree with.
        held_out: Token ids `(N, T)` of text that was not trained on. The first `PASSAGE_TOKENS` of each row are used.
        device: Device and precision to run on.
    """

    def __init__(self, teacher: Teacher, held_out: Tensor, device: Device) -> None:
        tokens = min(PASSAGE_TOKENS, held_out.shape[1])
        self._passages = torch.cat([held_out[:, : tokens - 1], held_out[:, -1:]], dim=1).to(device.name)
        self._teacher, self._device = teacher, device
        self._target = self._similarities(lambda ids: teacher.model(input_ids=ids).last_hidden_state)

    @property
    def passages(self) -> int:
        """Return the number of passages."""
        return len(self._passages)

    @property
    def tokens(self) -> int:
        """Return the number of tokens of a passage."""
        return int(self._passages.shape[1])

    @property
    def tells_apart(self) -> bool:
        """Return True if the teacher's similarities are not all equal, without which there is nothing to rank."""
        return len(set(self._target)) > 1

    def of(self, model: AutoDistilModel, subnet: Subnet | None = None) -> float:
        """Return the rank correlation of `subnet` of `model`, or of the whole model; NaN if it tells no pair apart."""
        return self.agreement(self.similarities(model, subnet))

    def similarities(self, model: AutoDistilModel, subnet: Subnet | None = None) -> NDArray[np.float64]:
        """Return the cosines of all pairs of passages by `subnet` of `model`, or by the whole model."""
        model.eval()
        return self._similarities(lambda ids: model(ids, subnet=subnet).last_hidden_state)

    def of_word_vectors(self) -> float:
        """Return the rank correlation of the mean of the teacher's word vectors, a floor that needs no layer."""
        return self.agreement(self._similarities(self._teacher.model.get_input_embeddings()))

    @torch.no_grad()
    def _similarities(self, states_of: Callable[[Tensor], Tensor]) -> NDArray[np.float64]:
        """Return the cosines of all pairs of passages, `(N (N - 1) / 2,)`."""
        vectors = []
        for ids in self._passages.split(_AT_ONCE):
            with self._device.autocast():
                states = states_of(ids).float()
            vectors.append(self._teacher.pooling.vectors(states, torch.ones_like(ids)))
        unit = torch.nn.functional.normalize(torch.cat(vectors).cpu().double(), dim=-1)
        rows, columns = np.triu_indices(len(unit), k=1)
        cosines: NDArray[np.float64] = (unit @ unit.T).numpy()[rows, columns]
        return cosines

    def agreement(self, similarities: NDArray[np.float64]) -> float:
        """Return the rank correlation of the cosines of all pairs with the teacher's; NaN if either are all equal."""
        from scipy.stats import spearmanr

        if not self.tells_apart or not np.ptp(similarities):
            return float("nan")
        return float(spearmanr(self._target, similarities).statistic)
