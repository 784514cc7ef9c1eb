"""The tokenizer of a Hugging Face folder.

Reads tokenizer.json with `tokenizers` rather than through transformers, whose import brings torch into the API process
and takes longer than everything else at start-up. A test holds both to the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import tokenizers

from tandem_runtime.core.errors import StartupError
from tandem_runtime.text import reasoning
from tandem_runtime.text.detokenize import (
    IncrementalDetokenizer,
    PieceToBytes,
    Placed,
    TokenBytes,
    piece_to_bytes,
    placed,
)
from tandem_runtime.text.reasoning import ThinkingTokens
from tandem_runtime.text.stand_in import stand_in_tokenizer
from tandem_runtime.text.template import ChatTemplate

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


class Tokenizer:
    """Thread-safe: nothing changes after loading but a cache of token bytes."""

    def __init__(self, folder: str, *, chat_template: str | None = None, stand_in: bool = False) -> None:
        """`chat_template`: a Jinja file instead of the folder's own; `stand_in`: do without tokenizer.json.

        Raises `StartupError`.
        """
        self._backend = load_backend(Path(folder), stand_in=stand_in)
        to_bytes = pieces_of(self._backend, folder)
        special = special_token_ids(self._backend)
        self.token_bytes = TokenBytes(self._backend.id_to_token, to_bytes)
        """Every token, special ones too."""
        self._visible_bytes = TokenBytes(self._backend.id_to_token, to_bytes, hidden=special)
        special_tokens = _special_tokens(_config(Path(folder)))
        self.template = _template(Path(folder), chat_template, special_tokens)
        """None for models without one."""
        source = None if self.template is None else self.template.source
        everything = json.dumps([self._backend.to_str(), special_tokens, source])
        self.digest = hashlib.blake2b(everything.encode(), digest_size=16).hexdigest()
        """Equal ones make the same prompts of the same messages, and the same text of the same tokens."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Releases the GIL; long texts belong in a thread."""
        # Of the library's ways to encode, only those for batches release it.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def encode_placed(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[int]]:
        """As `encode`, and where each token begins in `text`; tokens that the tokenizer adds have no length."""
        (encoding,) = self._backend.encode_batch([text], add_special_tokens=add_special_tokens)
        added = encoding.special_tokens_mask
        spelled = placed(b"" if mask else self.token_bytes[one] for one, mask in zip(encoding.ids, added, strict=True))
        if spelled.text == text:
            return encoding.ids, spelled.offsets
        # The text was normalized, or got a blank in front. The library knows where its tokens came from, though it may
        # leave out their leading blanks.
        return encoding.ids, list(accumulate((begin for begin, _ in encoding.offsets), max))

    def decode_placed(self, token_ids: Sequence[int]) -> Placed:
        """As `decode`."""
        return placed(self.token_bytes[token_id] for token_id in token_ids)

    def token_id(self, text: str) -> int | None:
        """Of the one token that `text` is, if it is one."""
        token_ids = self.encode(text, add_special_tokens=False)
        return token_ids[0] if len(token_ids) == 1 else None

    def thinking_tokens(self) -> ThinkingTokens | None:
        """None where the tags of a thought are no single tokens."""
        opening, closing = self.token_id(reasoning.OPEN), self.token_id(reasoning.CLOSE)
        if opening is None or closing is None:
            return None
        breaks = [token_id for text in ("\n", "\n\n") if (token_id := self.token_id(text)) is not None]
        return ThinkingTokens(opening, closing, tuple(breaks))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens included; ids without a token are empty."""
        return b"".join([self.token_bytes[token_id] for token_id in token_ids]).decode("utf-8", "replace")

    def decode_each(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token by itself; a part of a character becomes U+FFFD."""
        return [self.token_bytes[token_id].decode("utf-8", "replace") for token_id in token_ids]

    def detokenizer(self) -> IncrementalDetokenizer:
        """For one sequence; hides special tokens."""
        return IncrementalDetokenizer(self._visible_bytes)


def check_presence(folder: str) -> None:
    """At once, where reading takes a while. Raises `StartupError`."""
    if not (Path(folder) / TOKENIZER_FILE).is_file():
        raise StartupError(f"--model {folder}: there is no {TOKENIZER_FILE}")


def load_backend(folder: Path, *, stand_in: bool) -> tokenizers.Tokenizer:
    """Raises `StartupError`."""
    missing = not (folder / TOKENIZER_FILE).is_file()
    return stand_in_tokenizer(folder) if stand_in and missing else _load(folder)


def special_token_ids(backend: tokenizers.Tokenizer) -> frozenset[int]:
    return frozenset(token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special)


def pieces_of(backend: tokenizers.Tokenizer, folder: str | Path) -> PieceToBytes:
    """How the vocabulary's pieces spell bytes. Raises `StartupError`."""
    to_bytes = piece_to_bytes(_decoder_of(backend))
    if to_bytes is None:
        raise StartupError(f"--model {folder}: the tokenizer's decoder is neither byte-level nor byte-fallback")
    return to_bytes


def _load(folder: Path) -> tokenizers.Tokenizer:
    check_presence(str(folder))
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    except Exception as error:  # the only kind that the Rust library raises
        raise StartupError(f"--model {folder}: {TOKENIZER_FILE} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _decoder_of(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    if tokenizer.decoder is None:
        return {"type": "none"}
    decoder: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return decoder


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: token["content"] if isinstance(token, dict) else token
        for name, token in config.items()
        if name.endswith("_token") and isinstance(token, str | dict)
    }


def _template(folder: Path, override: str | None, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    if override is not None:
        return ChatTemplate.read_override(override, special_tokens)
    if (folder / TEMPLATE_FILE).is_file():
        return ChatTemplate.read(folder / TEMPLATE_FILE, special_tokens)
    source, name = _config(folder).get("chat_template"), f"chat_template of {folder / CONFIG_FILE}"
    if isinstance(source, list):  # several, by name
        source = next((one["template"] for one in source if one["name"] == "default"), None)
    return None if source is None else ChatTemplate(source, special_tokens, name=name)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise StartupError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise StartupError(f"{path}: not a JSON object")
    return config
