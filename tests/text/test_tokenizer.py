from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_runtime.core.errors import StartupError
from tandem_runtime.text.tokenizer import Tokenizer
from transformers import AutoTokenizer


@pytest.fixture(scope="module", params=["tiny", "qwen3", pytest.param("smollm2", marks=pytest.mark.model)])
def ours_and_reference(request: pytest.FixtureRequest) -> tuple[Tokenizer, AutoTokenizer]:
    folder: Path = request.getfixturevalue(f"{request.param}_folder")
    return Tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)


@given(text=st.text(max_size=100))
@settings(max_examples=200, deadline=None)
def test_ids_as_transformers_has_them(ours_and_reference: tuple[Tokenizer, AutoTokenizer], text: str) -> None:
    ours, reference = ours_and_reference
    assert ours.encode(text, add_special_tokens=True) == reference(text)["input_ids"]
    assert ours.encode(text, add_special_tokens=False) == reference(text, add_special_tokens=False)["input_ids"]


def test_chat_markup_is_special_tokens(qwen3: Tokenizer) -> None:
    assert qwen3.encode("<|im_start|>user\nHi<|im_end|>", add_special_tokens=False)[0] == 151_644


def test_threads_may_share_one(qwen3: Tokenizer) -> None:
    texts = [f"number {i} " * 200 for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        concurrent = list(pool.map(lambda text: qwen3.encode(text, add_special_tokens=False), texts))
    assert concurrent == [qwen3.encode(text, add_special_tokens=False) for text in texts]


def test_encoding_leaves_other_threads_running(qwen3: Tokenizer) -> None:
    """The tokenizer's own `encode` keeps the GIL: 3.6 MB in a thread stopped the event loop for seconds."""
    others = 0
    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(qwen3.encode, "number 1 of many\n" * 60_000, add_special_tokens=False)
        while not encoding.done():
            time.sleep(0.001)
            others += 1
    assert others > 20


@pytest.mark.parametrize("text", ["naïve 你好", "<|im_end|>x"])
def test_each_token_as_decoded_alone(qwen3: Tokenizer, text: str) -> None:
    ids = qwen3.encode(text, add_special_tokens=False)
    assert qwen3.decode_each(ids) == [qwen3.decode([token_id]) for token_id in ids]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "there is no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", "[]", "not a JSON object"),
        ("tokenizer_config.json", "{", "tokenizer_config.json"),
        ("chat_template.jinja", "{{", r"chat template .*chat_template\.jinja, line 1"),
    ],
)
def test_damaged_folders(tiny_folder: Path, tmp_path: Path, file: str, content: str | None, message: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(StartupError, match=message):
        Tokenizer(str(folder))
