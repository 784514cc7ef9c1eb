"""Incremental detokenization equals decoding everything at once, and never shows half a character."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_runtime.text.detokenize import IncrementalDetokenizer, TokenBytes, piece_to_bytes
from tandem_runtime.text.tokenizer import Tokenizer
from tokenizers import decoders, models

SEED = st.integers(0, 2**31)


@pytest.fixture(scope="module", params=["tiny", "qwen3", pytest.param("smollm2", marks=pytest.mark.model)])
def both(request: pytest.FixtureRequest) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """Ours and the library's own, of the same folder."""
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return Tokenizer(str(folder)), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def shown(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    detokenizer = tokenizer.detokenizer()
    return "".join(detokenizer.push(token_id) for token_id in token_ids)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_random_ids_as_the_full_decode(both: tuple[Tokenizer, tokenizers.Tokenizer], data: st.DataObject) -> None:
    ours, library = both
    token_ids = data.draw(st.lists(st.integers(0, library.get_vocab_size() - 1), max_size=60))
    full = library.decode(token_ids, skip_special_tokens=True)
    text = shown(ours, token_ids)
    # What is left over is at most one unfinished character, which the full decode replaces.
    assert full.removeprefix(text) in ("", "\ufffd")
    assert full.startswith(text)


@given(text=st.text(max_size=80))
@settings(max_examples=100, deadline=None)
def test_real_text_is_shown_whole(both: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    ours, library = both
    token_ids = library.encode(text, add_special_tokens=False).ids
    assert shown(ours, token_ids) == library.decode(token_ids, skip_special_tokens=True)


def test_a_character_over_several_tokens_comes_at_once(tiny_folder: Path) -> None:
    tokenizer = Tokenizer(str(tiny_folder))
    token_ids = tokenizer.encode("𝄞", add_special_tokens=False)
    assert len(token_ids) == 4
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.push(token_id) for token_id in token_ids] == ["", "", "", "𝄞"]


def test_ids_beyond_the_tokenizer_are_empty(qwen3: Tokenizer) -> None:
    """Models pad their embedding: Qwen3 has 151,936 rows for 151,669 tokens."""
    assert qwen3.detokenizer().push(151_900) == ""
    assert qwen3.decode([151_900]) == ""


def test_special_tokens_are_hidden_and_thinking_tags_are_not(qwen3: Tokenizer) -> None:
    token_ids = qwen3.encode("<think>a<|im_end|>", add_special_tokens=False)
    assert shown(qwen3, token_ids) == "<think>a"
    assert qwen3.decode(token_ids) == "<think>a<|im_end|>"


def test_cost_per_token_does_not_grow() -> None:
    """Growing-list decoders are quadratic on invalid bytes; here 100,000 tokens take well under a second of work."""
    to_bytes = piece_to_bytes({"type": "ByteLevel"})
    assert to_bytes is not None
    detokenizer = IncrementalDetokenizer(TokenBytes(lambda token_id: "Ģ", to_bytes))  # the lone byte 0x80
    started = time.process_time()
    for _ in range(100_000):
        detokenizer.push(7)
    assert time.process_time() - started < 2.0


PIECES = ["<unk>", "▁a", "b", "<0xE4>", "<0xBD>", "<0xA0>", "<0x41>", "▁"]


@given(token_ids=st.lists(st.sampled_from([1, 2, 6, 7]), max_size=20), character=st.booleans())
def test_byte_fallback(token_ids: list[int], character: bool) -> None:
    library = tokenizers.Tokenizer(
        models.BPE(vocab={p: i for i, p in enumerate(PIECES)}, merges=[], byte_fallback=True)
    )
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    to_bytes = piece_to_bytes({"type": "Sequence", "decoders": [{"type": "ByteFallback"}]})
    assert to_bytes is not None
    detokenizer = IncrementalDetokenizer(TokenBytes(PIECES.__getitem__, to_bytes))
    token_ids = token_ids + [3, 4, 5] * character
    assert "".join(map(detokenizer.push, token_ids)) == library.decode(token_ids)


def test_other_decoders_are_refused() -> None:
    assert piece_to_bytes({"type": "WordPiece"}) is None
