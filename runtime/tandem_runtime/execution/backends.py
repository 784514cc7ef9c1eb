"""The parts of a runner that differ between backends. Triton is imported only where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from tandem_kernels.native import NativeOps

from tandem_runtime.execution.attention.backend import AttentionBackend
from tandem_runtime.execution.attention.eager import EagerAttention
from tandem_runtime.execution.attention.native import NativeAttention
from tandem_runtime.execution.layers.context import Ops, Product
from tandem_runtime.execution.layers.linear import TiedTable, load_linear
from tandem_runtime.execution.layers.linear_cpu import linears, load_rounded
from tandem_runtime.execution.layers.mlp import silu_and_mul
from tandem_runtime.execution.layers.moe import SparseMoe
from tandem_runtime.execution.layers.norm import rms_norm
from tandem_runtime.execution.layers.rope import Rope
from tandem_runtime.execution.samplers import EagerSampler, Sampler
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.execution.timing import CudaTimer, HostTimer, Timer
from tandem_runtime.execution.weights import Part, WeightSource

LoadLinear = Callable[[WeightSource, Sequence[Part], torch.Tensor | None], Product]

Allocate = Callable[[int], torch.Tensor]
"""Zeroed memory of so many bytes, uint8."""


def ops_of(config: ExecutionConfig) -> Ops:
    fp8 = config.quantization == "fp8"
    if config.backend != "triton":
        return _cpu_ops(config)
    from tandem_kernels import rms_norm as norms
    from tandem_kernels import silu_and_mul as activations

    from tandem_runtime.execution.layers.moe_triton import TritonMoe

    return Ops(
        rms_norm=norms.rms_norm,
        silu_and_mul=activations.silu_and_mul,
        linear=_fp8_linear(config) if fp8 else load_linear,
        dense=load_linear,
        tied=TiedTable,
        moe=partial(TritonMoe, fp8=fp8),
    )


def _fp8_linear(config: ExecutionConfig) -> LoadLinear:
    from tandem_kernels.fp8_scaled_mm import supported

    from tandem_runtime.execution.layers.linear_fp8 import load_linear

    return partial(load_linear, library=supported(torch.device(config.device), config.torch_dtype))


def _cpu_ops(config: ExecutionConfig) -> Ops:
    native = NativeOps(config.torch_dtype) if config.backend == "native" else None
    kept = linears(config.torch_dtype, native=native is not None)
    # A quantised checkpoint is widened where it is read.
    rounded = config.quantization == "fp8" and config.model.quantization is None
    return Ops(
        rms_norm=native.rms_norm if native else rms_norm,
        silu_and_mul=native.silu_and_mul if native else silu_and_mul,
        linear=partial(load_rounded, kept) if rounded else kept.load,
        dense=kept.load,
        tied=kept.tied,
        moe=SparseMoe,
    )


def sampler_of(config: ExecutionConfig) -> Sampler:
    if config.backend != "triton":
        return EagerSampler(vocab_size=config.model.vocab_size)
    from tandem_runtime.execution.triton_sampler import TritonSampler

    return TritonSampler(
        max_num_seqs=config.max_num_seqs, vocab_size=config.model.vocab_size, device=torch.device(config.device)
    )


def timer_of(config: ExecutionConfig) -> Timer:
    return CudaTimer() if config.device == "cuda" else HostTimer()


def attention_of(
    config: ExecutionConfig, *, num_pages: int, q_heads: int, kv_heads: int, allocate: Allocate | None = None
) -> AttentionBackend:
    """With a KV cache of its own; head counts are the rank's."""
    kv_PHLCSD = _kv_cache(config, num_pages, kv_heads, allocate)
    rope = Rope(config.model.rope, config.model.head_dim, dtype=config.torch_dtype, device=config.device)
    if config.backend == "eager":
        return EagerAttention(kv_PHLCSD, num_q_heads=q_heads, rope=rope)
    if config.backend == "native":
        return NativeAttention(kv_PHLCSD, NativeOps(config.torch_dtype), num_q_heads=q_heads, rope=rope)
    from tandem_runtime.execution.attention.triton import TritonAttention

    return TritonAttention(
        kv_PHLCSD,
        num_q_heads=q_heads,
        rope=rope,
        max_num_seqs=config.max_num_seqs,
        max_pages_per_seq=config.max_pages_per_seq,
    )


def _kv_cache(config: ExecutionConfig, num_pages: int, num_heads: int, allocate: Allocate | None) -> torch.Tensor:
    model = config.model
    shape = (num_pages, num_heads, model.num_layers, 2, config.page_size, model.head_dim)
    dtype = torch.float8_e4m3fn if config.kv_dtype == "fp8" else config.torch_dtype
    size = num_pages * config.layout.page_bytes
    if allocate is not None:
        zeros = allocate(size)
    elif config.device == "cuda":
        zeros = torch.zeros(size, dtype=torch.uint8, device=config.device)
    else:
        # NumPy's zeros are the kernel's: no page costs memory, or time at start, before it is written.
        zeros = torch.from_numpy(np.zeros(size, dtype=np.uint8))
    return zeros.view(dtype).view(shape)
