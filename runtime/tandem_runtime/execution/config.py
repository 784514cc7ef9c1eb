"""What a model is, read from a Hugging Face folder's `config.json` and `generation_config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tandem_runtime.core.errors import StartupError, UnsupportedModelError
from tandem_runtime.execution.config_fields import count, flag, mapping, positive, strings, whole_numbers
from tandem_runtime.execution.fp8 import BLOCK
from tandem_runtime.execution.rope_scaling import context_length, rope_parameters

CONFIG = "config.json"
GENERATION = "generation_config.json"
DType = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[DType, ...] = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one architecture differs from the plain decoder, where its config does not say so itself."""

    qkv_bias: bool | None
    """None: as `attention_bias` says."""
    o_bias: bool | None
    qk_norm: bool
    moe: bool = False


FAMILIES = {
    "LlamaForCausalLM": Family(qkv_bias=None, o_bias=None, qk_norm=False),
    "Qwen2ForCausalLM": Family(qkv_bias=True, o_bias=False, qk_norm=False),
    "Qwen3ForCausalLM": Family(qkv_bias=None, o_bias=None, qk_norm=True),
    "Qwen3MoeForCausalLM": Family(qkv_bias=None, o_bias=None, qk_norm=True, moe=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeConfig:
    num_experts: int
    experts_per_token: int
    intermediate_size: int
    norm_topk_prob: bool
    sparse_step: int
    """Every `sparse_step`-th layer is sparse, counted from 1."""
    dense_layers: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    """Longest context, with the rope scaling in force."""
    rope: dict[str, Any]
    """Hugging Face's `rope_parameters`, `rope_theta` included, after overrides."""
    moe: MoeConfig | None
    dtype: DType
    """The checkpoint's own."""
    eos_token_ids: tuple[int, ...]
    quantization: Literal["fp8"] | None = None
    """Of the checkpoint's linear layers: block-wise fp8."""

    @classmethod
    def from_folder(
        cls, folder: Path, *, rope_scaling: str | None = None, max_model_len: int | None = None
    ) -> ModelConfig:
        """Reads the folder; `rope_scaling` goes over the config's own, to reach `max_model_len` if it names no factor.

        Raises `UnsupportedModelError` for what this runtime cannot execute, `StartupError` for what cannot be read.
        """
        raw = _read_json(folder / CONFIG)
        generation = _read_json(folder / GENERATION, missing_ok=True)
        try:
            return _parse(raw, generation, rope_parameters(raw, rope_scaling, max_model_len=max_model_len))
        except KeyError as error:
            raise UnsupportedModelError(f"{folder / CONFIG} lacks the field {error}") from None

    def is_moe_layer(self, layer: int) -> bool:
        return self.moe is not None and layer not in self.moe.dense_layers and (layer + 1) % self.moe.sparse_step == 0


def _read_json(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise StartupError(f"{path} does not exist: --model must be a folder of a Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise StartupError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise StartupError(f"{path} is no JSON object")
    return value


def _parse(raw: dict[str, Any], generation: dict[str, Any], rope: dict[str, Any]) -> ModelConfig:
    architecture = next(iter(strings(raw, "architectures")), None)
    family = FAMILIES.get(architecture) if architecture else None
    if architecture is None:
        raise UnsupportedModelError("config.json names no model class under 'architectures'")
    if family is None:
        raise UnsupportedModelError(f"architecture {architecture} is not supported; supported: {', '.join(FAMILIES)}")
    _refuse_unsupported(raw)
    bias = flag(raw, "attention_bias")
    heads, hidden, vocab_size = (count(raw, name) for name in ("num_attention_heads", "hidden_size", "vocab_size"))
    kv_heads = count(raw, "num_key_value_heads", heads)
    head_dim = count(raw, "head_dim", hidden // heads)
    if heads % kv_heads:
        raise StartupError(f"config.json: {heads} num_attention_heads cannot share {kv_heads} num_key_value_heads")
    if head_dim % 2:
        raise StartupError(f"config.json: head_dim must be even, for rotary embeddings, not {head_dim}")
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=count(raw, "intermediate_size"),
        num_layers=count(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=positive(raw, "rms_norm_eps"),
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=bias if family.o_bias is None else family.o_bias,
        mlp_bias=flag(raw, "mlp_bias"),
        qk_norm=family.qk_norm,
        tie_word_embeddings=flag(raw, "tie_word_embeddings"),
        max_position_embeddings=context_length(count(raw, "max_position_embeddings"), rope),
        rope=rope,
        moe=_moe(raw) if family.moe else None,
        dtype=_dtype(raw),
        eos_token_ids=_eos(generation, GENERATION, vocab_size) or _eos(raw, CONFIG, vocab_size),
        quantization=_quantization(raw),
    )


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(f"hidden_act {raw['hidden_act']} is not supported; supported: silu")
    if raw.get("use_sliding_window"):
        raise UnsupportedModelError("use_sliding_window is not supported; set it to false in config.json")


def _quantization(raw: dict[str, Any]) -> Literal["fp8"] | None:
    described = mapping(raw, "quantization_config")
    if not described:
        return None
    method, block = described.get("quant_method"), described.get("weight_block_size")
    if method != "fp8" or block != [BLOCK, BLOCK]:
        raise UnsupportedModelError(
            f"quantization {method} (weight_block_size {block}) is not supported; supported: fp8 in blocks of"
            f" {BLOCK} x {BLOCK}, or an unquantized checkpoint"
        )
    return "fp8"


def _moe(raw: dict[str, Any]) -> MoeConfig:
    num_experts = count(raw, "num_local_experts" if raw.get("num_experts") is None else "num_experts")
    experts_per_token = count(raw, "num_experts_per_tok")
    if experts_per_token > num_experts:
        raise StartupError(f"config.json: num_experts_per_tok is {experts_per_token}, of {num_experts} experts")
    return MoeConfig(
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        intermediate_size=count(raw, "moe_intermediate_size"),
        norm_topk_prob=flag(raw, "norm_topk_prob"),
        sparse_step=count(raw, "decoder_sparse_step", 1),
        dense_layers=frozenset(whole_numbers(raw, "mlp_only_layers")),
    )


def _dtype(raw: dict[str, Any]) -> DType:
    name = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise UnsupportedModelError(f"dtype {name} is not supported; supported: {', '.join(DTYPES)}")
    return name


def _eos(raw: dict[str, Any], file: str, vocab_size: int) -> tuple[int, ...]:
    """Without ids that no logit has, which configs copied from another model or padded with -1 name: none can be
    sampled, and `min_tokens` bars the others by index."""
    return tuple(token for token in whole_numbers(raw, "eos_token_id", file=file) if 0 <= token < vocab_size)
