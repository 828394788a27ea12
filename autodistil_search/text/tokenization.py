"""Documents to token ids: paragraph by paragraph, in pieces that fit into memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from autodistil_search.base.errors import InputError
from autodistil_search.base.pretrained import ends
from autodistil_search.text.blocks import Ends, Tokens
from autodistil_search.text.sources import LONGEST_PIECE, piece_end

CHARACTERS_AT_ONCE = 1 << 18
"""Text that is tokenized in one call; all that is in memory of it at a time is a few of these for each worker."""
_MOST_UNKNOWN = 0.5
"""Text with a larger share of unknown tokens teaches nothing."""


class Encoder:
    """Token ids of paragraphs, without [CLS] and [SEP]; nothing is cut or padded, however the tokenizer was left.

    A fast tokenizer works outside Python's lock, on all CPUs.

    Raises:
        InputError: if the tokenizer has nothing to begin and end a block with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend: Tokenizer | None = None
        if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
            self._backend = Tokenizer.from_str(backend.to_str())
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = backend.encode_special_tokens
        self.unknown = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        self.ends = Ends(*ends("the teacher", tokenizer))

    @property
    def rules(self) -> str:
        """All that its token ids follow from."""
        rules = {"vocab": self._tokenizer.get_vocab()} if self._backend is None else json.loads(self._backend.to_str())
        return f"{type(self._tokenizer).__name__} {json.dumps(rules, sort_keys=True)}"

    @property
    def most_workers(self) -> int | None:
        """How many threads gain anything; None if any number does."""
        return None if self._backend is not None else 1

    def __call__(self, paragraphs: list[str]) -> Tokens:
        """The ids of all paragraphs in a row; a long one is encoded piece by piece, see `sources.piece_end`."""
        return np.concatenate([ids for batch in _batches(paragraphs) for ids in self._encoded(batch)])

    def _encoded(self, paragraphs: list[str]) -> list[Tokens]:
        if self._backend is not None:
            encoded = self._backend.encode_batch_fast(paragraphs, add_special_tokens=False)
            ids = [each.ids for each in encoded]
        else:
            ids = self._tokenizer(
                paragraphs,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # blocks are cut later: a long paragraph is no mistake
            )["input_ids"]
        return [np.array(each, dtype=np.uint32) for each in ids]


def _batches(paragraphs: Sequence[str]) -> Iterator[list[str]]:
    """The paragraphs in order, about `CHARACTERS_AT_ONCE` at a time: a tokenizer needs 100 bytes for a character."""
    batch: list[str] = []
    length = 0
    for piece in itertools.chain.from_iterable(map(_cut, paragraphs)):
        if batch and length + len(piece) > CHARACTERS_AT_ONCE:
            yield batch
            batch, length = [], 0
        batch.append(piece)
        length += len(piece)
    yield batch


def _cut(paragraph: str) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > LONGEST_PIECE:
        end = start + piece_end(paragraph[start : start + LONGEST_PIECE + 1], LONGEST_PIECE)
        yield paragraph[start:end]
        start = end
    yield paragraph[start:]


def check_known(unknown: int, tokens: int) -> None:
    """Refuse text of which most tokens are unknown.

    Raises:
        InputError: naming how many.
    """
    if unknown > _MOST_UNKNOWN * tokens:
        raise InputError(
            f"{unknown:,} of the text's {tokens:,} tokens are unknown to the teacher's tokenizer; "
            f"allowed: at most {_MOST_UNKNOWN:.0%}. Is it text in the teacher's language?"
        )
