"""Tokenization of documents: paragraph by paragraph, in pieces that fit into memory."""

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
"""Characters that are tokenized in one call; each worker has only a few times as many in memory."""
_MOST_UNKNOWN = 0.5
"""Largest share of unknown tokens; training on text with a larger share is useless."""


class Encoder:
    """Encoder of paragraphs as token ids, without [CLS], [SEP], truncation or padding.

    The settings of the tokenizer for truncation and padding are ignored. A fast tokenizer runs outside Python's global
    lock, on all CPUs.

    Raises:
        InputError: if the tokenizer has no tokens to begin and end a block.
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
        """Vocabulary and rules of the tokenizer, which determine the token ids."""
        rules = {"vocab": self._tokenizer.get_vocab()} if self._backend is None else json.loads(self._backend.to_str())
        return f"{type(self._tokenizer).__name__} {json.dumps(rules, sort_keys=True)}"

    @property
    def most_workers(self) -> int | None:
        """Largest useful number of threads; None if there is no limit."""
        return None if self._backend is not None else 1

    def __call__(self, paragraphs: list[str]) -> Tokens:
        """Return the concatenated ids of all paragraphs; a long paragraph is cut into pieces by `sources.piece_end`."""
        return np.concatenate([ids for batch in _batches(paragraphs) for ids in self._encoded(batch)])

    def _encoded(self, paragraphs: list[str]) -> list[Tokens]:
        if self._backend is not None:
            encoded = self._backend.encode_batch_fast(paragraphs, add_special_tokens=False)
            ids = [encoding.ids for encoding in encoded]
        else:
            ids = self._tokenizer(
                paragraphs,
                add_special_tokens=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,  # no warning of long paragraphs: blocks are cut later
            )["input_ids"]
        return [np.array(paragraph_ids, dtype=np.uint32) for paragraph_ids in ids]


def _batches(paragraphs: Sequence[str]) -> Iterator[list[str]]:
    """Yield the paragraphs in order, in batches of `CHARACTERS_AT_ONCE`: a tokenizer needs 100 bytes a character."""
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
    """Refuse text with too many unknown tokens.

    Args:
        unknown: Number of unknown tokens.
        tokens: Number of all tokens.

    Raises:
        InputError: if the share is too large; the message gives the numbers.
    """
    if unknown > _MOST_UNKNOWN * tokens:
        raise InputError(
            f"{unknown:,} of the text's {tokens:,} tokens are unknown to the teacher's tokenizer; "
            f"allowed: at most {_MOST_UNKNOWN:.0%}. Is it text in the teacher's language?"
        )
