"""A tiny Qwen3 of random weights with Qwen3's real tokenizer and chat template.

What it says is noise over 151,669 tokens: a perfect adversary for whatever promises to keep an answer in shape.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support import qwen3_tokenizer
from transformers import Qwen3Config, set_seed
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

EOS_TOKEN_IDS = [151645, 151643]
TINY = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
WIDE = {"hidden_size": 264, "intermediate_size": 1100, "head_dim": 32}
"""Wide enough that on the CPU its arithmetic, as that of real models, is the same in every batch (ADR 0007)."""


def build_tiny_qwen3(folder: Path, widths: dict[str, int] = TINY) -> Path:
    """Skips the test where the tokenizer cannot be had."""
    tokenizer = qwen3_tokenizer.folder()
    set_seed(0)
    config = Qwen3Config(
        vocab_size=151936,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=EOS_TOKEN_IDS[0],
        bos_token_id=None,
        initializer_range=0.2,
        **widths,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS_TOKEN_IDS}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return folder
