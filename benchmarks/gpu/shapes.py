"""The shapes that are measured, as model folders without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "head_dim": 128,
    "eos_token_id": 151645,
}
_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}


class Model(NamedTuple):
    config: dict[str, Any]
    tensor_parallel: int = 1
    """One rank of so many is measured, its collectives left out."""


MODELS = {
    "Qwen3-32B": Model(
        _QWEN3
        | {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64}
        | {"num_attention_heads": 64, "num_key_value_heads": 8}
    ),
    "Qwen3-8B": Model(
        _QWEN3
        | {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36}
        | {"num_attention_heads": 32, "num_key_value_heads": 8}
    ),
    "Qwen3-30B-A3B": Model(
        _QWEN3
        | _MOE
        | {"hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48}
        | {"num_attention_heads": 32, "num_key_value_heads": 4}
    ),
    "Qwen3-235B-A22B-TP8": Model(
        _QWEN3
        | _MOE
        | {"hidden_size": 4096, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 94}
        | {"num_attention_heads": 64, "num_key_value_heads": 4},
        tensor_parallel=8,
    ),
    "tiny": Model(
        _QWEN3
        | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 32000}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "dtype": "float32"}
    ),
}


def folder(name: str, under: Path) -> Path:
    """A model folder for `--load-format dummy`, with a tokenizer that knows every id."""
    target = under / name
    if (target / "config.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    config = MODELS[name].config
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + [f"w{i}" for i in range(config["vocab_size"] - len(alphabet))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(target)
    (target / "config.json").write_text(json.dumps(config, indent=1))
    return target
