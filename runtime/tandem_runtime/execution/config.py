"""What a model is, read from a Hugging Face folder's `config.json` and `generation_config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tandem_runtime.core.errors import StartupError, UnsupportedModelError
from tandem_runtime.execution.fp8 import BLOCK
from tandem_runtime.execution.rope_scaling import context_length, rope_parameters

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
        raw = _read_json(folder / "config.json")
        generation = _read_json(folder / "generation_config.json", missing_ok=True)
        try:
            return _parse(raw, generation, rope_parameters(raw, rope_scaling, max_model_len=max_model_len))
        except KeyError as error:
            raise UnsupportedModelError(f"{folder / 'config.json'} lacks the field {error}") from None

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


def _count(raw: dict[str, Any], name: str) -> int:
    value = raw[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StartupError(f"config.json: {name} must be a whole number of at least 1, not {value!r}")
    return value


def _parse(raw: dict[str, Any], generation: dict[str, Any], rope: dict[str, Any]) -> ModelConfig:
    architecture = next(iter(raw.get("architectures") or []), None)
    family = FAMILIES.get(architecture) if architecture else None
    if architecture is None:
        raise UnsupportedModelError("config.json names no model class under 'architectures'")
    if family is None:
        raise UnsupportedModelError(f"architecture {architecture} is not supported; supported: {', '.join(FAMILIES)}")
    _refuse_unsupported(raw)
    bias = bool(raw.get("attention_bias", False))
    heads = _count(raw, "num_attention_heads")
    hidden = _count(raw, "hidden_size")
    return ModelConfig(
        architecture=architecture,
        vocab_size=_count(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_count(raw, "intermediate_size"),
        num_layers=_count(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_count(raw, "num_key_value_heads") if raw.get("num_key_value_heads") is not None else heads,
        head_dim=_count(raw, "head_dim") if raw.get("head_dim") is not None else hidden // heads,
        rms_norm_eps=raw["rms_norm_eps"],
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        o_bias=bias if family.o_bias is None else family.o_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_position_embeddings=context_length(int(raw["max_position_embeddings"]), rope),
        rope=rope,
        moe=_moe(raw) if family.moe else None,
        dtype=_dtype(raw),
        eos_token_ids=_eos(generation) or _eos(raw),
        quantization=_quantization(raw),
    )


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(f"hidden_act {raw['hidden_act']} is not supported; supported: silu")
    if raw.get("use_sliding_window"):
        raise UnsupportedModelError("use_sliding_window is not supported; set it to false in config.json")


def _quantization(raw: dict[str, Any]) -> Literal["fp8"] | None:
    described = raw.get("quantization_config")
    if not described:
        return None
    method, block = described.get("quant_method"), described.get("weight_block_size")
    if method != "fp8" or list(block or ()) != [BLOCK, BLOCK]:
        raise UnsupportedModelError(
            f"quantization {method} (weight_block_size {block}) is not supported; supported: fp8 in blocks of"
            f" {BLOCK} x {BLOCK}, or an unquantized checkpoint"
        )
    return "fp8"


def _moe(raw: dict[str, Any]) -> MoeConfig:
    return MoeConfig(
        num_experts=raw.get("num_experts") or raw["num_local_experts"],
        experts_per_token=raw["num_experts_per_tok"],
        intermediate_size=raw["moe_intermediate_size"],
        norm_topk_prob=bool(raw.get("norm_topk_prob", False)),
        sparse_step=raw.get("decoder_sparse_step", 1),
        dense_layers=frozenset(raw.get("mlp_only_layers") or ()),
    )


def _dtype(raw: dict[str, Any]) -> DType:
    name = raw.get("dtype") or raw.get("torch_dtype") or "float32"
    if name not in DTYPES:
        raise UnsupportedModelError(f"dtype {name} is not supported; supported: {', '.join(DTYPES)}")
    return name


def _eos(raw: dict[str, Any]) -> tuple[int, ...]:
    ids = raw.get("eos_token_id")
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (int(ids),)
