"""The tokenizer of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tandem_runtime.core.errors import StartupError
from tandem_runtime.text.detokenize import IncrementalDetokenizer, TokenBytes, piece_to_bytes
from tandem_runtime.text.template import ChatTemplate


class Tokenizer:
    """Thread-safe: nothing changes after loading but a cache of token bytes."""

    def __init__(self, folder: str, *, chat_template: str | None = None) -> None:
        """`chat_template`: a Jinja file instead of the folder's own. Raises `StartupError`. Takes seconds."""
        tokenizer = _load(folder)
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        to_bytes = piece_to_bytes(_decoder_of(self._backend))
        if to_bytes is None:
            raise StartupError(f"{folder}: the tokenizer's decoder is neither byte-level nor byte-fallback")
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self.token_bytes = TokenBytes(self._backend.id_to_token, to_bytes)
        """Every token, special ones too."""
        self._visible_bytes = TokenBytes(self._backend.id_to_token, to_bytes, hidden=self._hidden_ids())
        self.template = _template_of(tokenizer, chat_template)
        """None for models without one."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Releases the GIL; long texts belong in a thread."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Special tokens included; ids without a token are empty."""
        return b"".join([self.token_bytes[token_id] for token_id in token_ids]).decode("utf-8", "replace")

    def detokenizer(self) -> IncrementalDetokenizer:
        """For one sequence; hides special tokens."""
        return IncrementalDetokenizer(self._visible_bytes)

    def _hidden_ids(self) -> frozenset[int]:
        added = self._backend.get_added_tokens_decoder()
        return self._special_ids | {token_id for token_id, token in added.items() if token.special}


def _load(folder: str) -> Any:
    from transformers import AutoTokenizer  # here, because importing it takes seconds

    if not Path(folder).is_dir():
        raise StartupError(f"--model {folder}: no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # The library raises many kinds; to a user they all mean one thing.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise StartupError(f"--model {folder}: the tokenizer cannot be loaded: {reason}") from error
    if not tokenizer.is_fast:
        raise StartupError(f"--model {folder}: there is no tokenizer.json")
    return tokenizer


def _decoder_of(backend: Any) -> dict[str, Any]:
    if backend.decoder is None:
        return {"type": "none"}
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return decoder


def _template_of(tokenizer: Any, override: str | None) -> ChatTemplate | None:
    special_tokens = {
        name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)
    }
    if override is not None:
        return ChatTemplate.read(override, special_tokens)
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    return None if source is None else ChatTemplate(source, special_tokens)
