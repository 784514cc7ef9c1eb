"""Where tokens begin in their text."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_runtime.text.tokenizer import Tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, processors


@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_tokens_cover_their_text(tiny: Tokenizer, text: str) -> None:
    token_ids, offsets = tiny.encode_placed(text, add_special_tokens=True)
    assert token_ids == tiny.encode(text, add_special_tokens=True)
    assert tiny.decode_placed(token_ids) == (text, offsets)
    ends = [*offsets, len(text)][1:]
    assert all(begin <= end for begin, end in zip(offsets, ends, strict=True))
    for token_id, begin, end in zip(token_ids, offsets, ends, strict=True):
        alone = tiny.decode([token_id])
        assert "\ufffd" in alone or alone == text[begin:end]


def test_tokens_of_the_tokenizers_own_have_no_length(tiny_folder: Path, tmp_path: Path) -> None:
    backend = Backend.from_file(str(tiny_folder / "tokenizer.json"))
    begin, end = (backend.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", begin), ("<|im_end|>", end)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "a<|im_end|>é"
    token_ids, offsets = Tokenizer(str(tmp_path)).encode_placed(text, add_special_tokens=True)
    assert (token_ids[0], token_ids[2], token_ids[-1]) == (begin, end, end)
    assert (offsets[:4], offsets[-1]) == ([0, 0, 1, 11], len(text))


def test_a_text_that_was_normalized(tiny_folder: Path, tmp_path: Path) -> None:
    """Offsets are those of the text as given, which is what is echoed."""
    backend = Backend.from_file(str(tiny_folder / "tokenizer.json"))
    backend.normalizer = normalizers.NFC()
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "cafe\u0301 fox"
    token_ids, offsets = Tokenizer(str(tmp_path)).encode_placed(text, add_special_tokens=True)
    assert offsets == sorted(offsets)
    assert len(token_ids) == len(offsets)
    assert offsets[-1] > text.index("\u0301")
