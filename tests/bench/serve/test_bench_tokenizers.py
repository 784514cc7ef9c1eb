"""Exact prompt lengths by a real Hugging Face tokenizer from a folder, with special tokens and a chat template."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tandem_runtime.bench.errors import BenchError
from tandem_runtime.bench.serve.tokenizers import local_count
from tandem_runtime.bench.serve.workload import TextPrompts

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }} {{ m.content }}{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["a banana", "go to the moon"] * 4,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    path = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", chat_template=TEMPLATE).save_pretrained(path)
    return path


@pytest.mark.parametrize("length", [20, 257])
async def test_completion_and_chat_prompts_are_exact(folder: Path, length: int) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = await TextPrompts(local_count(str(folder), "completions")).text(random.Random(1), length)
    assert len(tokenizer(text).input_ids) == length
    text = await TextPrompts(local_count(str(folder), "chat")).text(random.Random(1), length)
    turn = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert len(ids) == length


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"--tokenizer {tmp_path}"):
        local_count(str(tmp_path), "completions")
