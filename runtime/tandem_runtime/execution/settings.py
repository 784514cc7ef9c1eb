"""What the executor is asked to do: the part of `tandem serve`'s flags that concerns it, checked and resolved."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tandem_contract.flags import ServeFlags
from tandem_kernels.native import NativeError, NativeOps

from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.execution.attention.native import supports
from tandem_runtime.execution.config import DType, ModelConfig

logger = logging.getLogger(__name__)

Backend = Literal["eager", "native", "triton"]
"""How layers compute: torch operations, C kernels (CPU), or Triton kernels."""
KVDType = DType | Literal["fp8"]
TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30, "t": 10**12, "ti": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionConfig:
    folder: Path
    model: ModelConfig
    dtype: DType
    load_format: Literal["safetensors", "dummy"]
    device: Literal["cpu", "cuda"]
    backend: Backend
    quantization: Literal["fp8"] | None
    """Of the layers' projections. The eager backend computes with what is left of them after rounding."""
    kv_dtype: KVDType
    tensor_parallel_size: int
    expert_parallel: bool
    """Whether ranks hold whole experts."""
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_samples: int
    """Most positions that are sampled in one step."""
    page_size: int
    kv_cache_memory: int | None
    """Bytes for KV pages on each rank; None: from what is free."""
    gpu_memory_utilization: float
    """Share of the card's memory that this process may take."""
    cuda_graphs: bool
    """Whether decode steps are captured and replayed."""
    cpu_threads: int | None
    """Of each rank; None: all cores, shared by the ranks."""
    seed: int = 0
    """Of dummy weights."""

    @classmethod
    def from_flags(cls, flags: ServeFlags) -> ExecutionConfig:
        """Raises `StartupError` where the flags and the model contradict each other."""
        folder = Path(flags.model)
        model = ModelConfig.from_folder(folder, rope_scaling=flags.rope_scaling, max_model_len=flags.max_model_len)
        if flags.max_model_len is not None and flags.max_model_len > model.max_position_embeddings:
            raise StartupError(
                f"--max-model-len {flags.max_model_len} exceeds the model's {model.max_position_embeddings} tokens;"
                " lower it, or extend the model with --rope-scaling yarn"
            )
        original = model.rope.get("original_max_position_embeddings", 0)
        if model.rope["rope_type"] == "yarn" and flags.max_model_len is not None and flags.max_model_len <= original:
            logger.warning(
                "YaRN costs short prompts some quality, and --max-model-len %d is within the model's own %d tokens:"
                " --rope-scaling none turns it off",
                flags.max_model_len, original,
            )  # fmt: skip
        dtype: DType = model.dtype if flags.dtype == "auto" else flags.dtype
        device = resolve_device(
            flags.device, tensor_parallel_size=flags.tensor_parallel_size, cuda_devices=torch.cuda.device_count()
        )
        dtype = model.dtype if flags.dtype == "auto" else flags.dtype
        kv_dtype: KVDType = "fp8" if flags.kv_cache_dtype == "fp8" else dtype
        config = cls(
            folder=folder,
            model=model,
            dtype=dtype,
            load_format=flags.load_format,
            device=device,
            backend="triton" if device == "cuda" else _cpu_backend(model, TORCH_DTYPES[dtype], kv_dtype),
            quantization={"auto": model.quantization, "none": None, "fp8": "fp8"}[flags.quantization],
            kv_dtype=kv_dtype,
            tensor_parallel_size=flags.tensor_parallel_size,
            expert_parallel=flags.expert_parallel,
            max_model_len=flags.max_model_len or model.max_position_embeddings,
            max_num_seqs=flags.max_num_seqs,
            max_num_batched_tokens=flags.max_num_batched_tokens,
            max_num_samples=_max_num_samples(flags),
            page_size=flags.page_size,
            kv_cache_memory=None if flags.kv_cache_memory is None else parse_size(flags.kv_cache_memory),
            gpu_memory_utilization=flags.gpu_memory_utilization,
            cuda_graphs=flags.cuda_graphs,
            cpu_threads=flags.cpu_threads,
        )
        check_divisible(model, flags.tensor_parallel_size, expert_parallel=flags.expert_parallel)
        if device == "cuda" and "fp8" in (config.quantization, config.kv_dtype):
            _check_fp8(torch.cuda.get_device_capability())
        return config

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]

    @property
    def layout(self) -> KVLayout:
        return KVLayout(
            num_layers=self.model.num_layers,
            num_kv_heads=self.model.num_kv_heads,
            head_dim=self.model.head_dim,
            page_size=self.page_size,
            dtype=self.kv_dtype,
            tensor_parallel=self.tensor_parallel_size,
        )

    @property
    def max_pages_per_seq(self) -> int:
        return self.layout.pages_for(self.max_model_len)


def _max_num_samples(flags: ServeFlags) -> int:
    if flags.speculative_method == "none":
        return flags.max_num_seqs
    speculating = min(flags.max_num_seqs, flags.speculative_disable_by_batch_size)
    with_drafts = min(flags.max_num_batched_tokens, speculating * (flags.num_speculative_tokens + 1))
    return max(flags.max_num_seqs, with_drafts)


def _cpu_backend(model: ModelConfig, dtype: torch.dtype, kv_dtype: KVDType) -> Backend:
    if kv_dtype == "fp8" or not supports(head_dim=model.head_dim, q_heads=model.num_heads, kv_heads=model.num_kv_heads):
        return "eager"
    try:
        NativeOps(dtype)
    except NativeError as error:
        logger.warning("no CPU kernels, torch operations instead: slower, and answers vary with the batch: %s", error)
        return "eager"
    return "native"


def parse_size(text: str) -> int:
    """Bytes of `4GiB`, `512MB`, `1073741824`; raises `StartupError`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise StartupError(f"--kv-cache-memory {text!r} is no size such as 4GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def check_divisible(model: ModelConfig, world: int, *, expert_parallel: bool = False) -> None:
    """Whether `world` ranks can share the model; raises `StartupError` naming the dimension that does not divide."""
    sizes = {"attention heads": model.num_heads, "intermediate size": model.intermediate_size}
    if model.moe is not None and expert_parallel:
        sizes["experts"] = model.moe.num_experts
    elif model.moe is not None:
        sizes["expert intermediate size"] = model.moe.intermediate_size
    elif expert_parallel:
        raise StartupError("--expert-parallel is for models with a mixture of experts, and this one has none")
    for name, size in sizes.items():
        if size % world:
            raise StartupError(f"--tensor-parallel-size {world} does not divide the model's {size} ({name})")
    if model.num_kv_heads % world and world % model.num_kv_heads:
        raise StartupError(
            f"--tensor-parallel-size {world} neither divides nor is a multiple of the model's"
            f" {model.num_kv_heads} KV heads"
        )


def resolve_device(
    asked: Literal["auto", "cpu", "cuda"], *, tensor_parallel_size: int, cuda_devices: int
) -> Literal["cpu", "cuda"]:
    """Raises `StartupError` when there are fewer CUDA devices than the ranks need."""
    if asked == "cpu" or (asked == "auto" and cuda_devices == 0):
        return "cpu"
    if cuda_devices == 0:
        raise StartupError(
            "--device cuda: this process sees no CUDA device; check the driver and the pod's GPU limit,"
            " or use --device cpu"
        )
    if cuda_devices < tensor_parallel_size:
        raise StartupError(
            f"--tensor-parallel-size {tensor_parallel_size} needs as many GPUs, and this process sees {cuda_devices}"
        )
    return "cuda"


def _check_fp8(capability: tuple[int, int]) -> None:
    if capability < (8, 9):
        raise StartupError(
            f"fp8 needs a GPU of compute capability 8.9 or newer, and this one's is {capability[0]}.{capability[1]};"
            " use --quantization none and --kv-cache-dtype auto"
        )
