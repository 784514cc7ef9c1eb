"""A tokenizer for folders that have none, so that `--load-format dummy` serves any config.json."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tandem_runtime.core.errors import StartupError


def stand_in_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Text becomes bytes; every other id of the model's vocabulary reads as a number, so that no token is silent.

    Raises `StartupError` when config.json does not tell the vocabulary's size.
    """
    try:
        size = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartupError(f"--model {folder}: config.json has no vocab_size, nor is there a tokenizer.json") from error
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())[:size]
    pieces += [f"\u0120{index}" for index in range(len(pieces), size)]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
