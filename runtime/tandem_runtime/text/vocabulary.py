"""A tokenizer's vocabulary as constrained decoding needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tandem_runtime.text.detokenize import TokenBytes
from tandem_runtime.text.tokenizer import load_backend, pieces_of, special_token_ids


class Vocabulary(NamedTuple):
    tokens: list[bytes]
    """By id; empty for ids without a token."""
    special_token_ids: list[int]
    encode: Callable[[str], list[int]]
    """As the model would write it: the text of a special token is mere text."""


def read_vocabulary(folder: Path, size: int, *, stand_in: bool) -> Vocabulary:
    """`size`: of the model's vocabulary, which may be larger than the tokenizer's. Raises `StartupError`."""
    backend = load_backend(folder, stand_in=stand_in)
    table = TokenBytes(backend.id_to_token, pieces_of(backend, folder))
    special = sorted(special_token_ids(backend))
    backend.encode_special_tokens = True
    tokens = [table[token_id] for token_id in range(size)]
    return Vocabulary(tokens, special, lambda text: backend.encode(text, add_special_tokens=False).ids)
