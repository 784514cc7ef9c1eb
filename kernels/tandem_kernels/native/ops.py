"""The kernels as functions of tensors. All tensors are on the CPU and of the dtype that the ops were made for."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tandem_kernels.native.library import library, typed

MAX_HEAD_DIM = 256
MAX_GROUP = 64
"""Query heads that share a KV head."""


class _Cache(ctypes.Structure):
    _fields_ = (
        ("kv", ctypes.c_void_p),
        ("kv_heads", ctypes.c_int64),
        ("layers", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
    )


class _Span(ctypes.Structure):
    _fields_ = (
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("position", ctypes.c_int64),
        ("pages", ctypes.c_void_p),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("tokens", ctypes.c_int64),
        ("q_heads", ctypes.c_int64),
        ("num_spans", ctypes.c_int64),
        ("spans", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
    )


class PagedCache:
    """The pages that `paged_attention` reads and `qk_norm_rope_kv_write` writes."""

    def __init__(self, kv_PHLCSD: torch.Tensor) -> None:
        assert kv_PHLCSD.is_contiguous()
        _, heads, layers, _, page_size, head_dim = kv_PHLCSD.shape
        self._tensor = kv_PHLCSD
        self.struct = _Cache(kv_PHLCSD.data_ptr(), heads, layers, page_size, head_dim)


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one sequence among a step's: a decode row is a span of one."""

    first: int
    """Row of its first token in the step."""
    count: int
    position: int
    """Of its first token in the sequence; all before it are in the pages."""
    pages_P: torch.Tensor
    """int32, contiguous: the sequence's page ids."""


class PagedStep:
    """One step over the cache, shared by all layers; keeps alive what the kernels point into."""

    def __init__(self, spans: Sequence[Span], cos_TR: torch.Tensor, sin_TR: torch.Tensor, q_heads: int) -> None:
        """`spans` in the order of their rows; cosines and sines fp32 [tokens, head_dim / 2], contiguous."""
        for table in (cos_TR, sin_TR):
            assert table.is_contiguous()
            assert table.dtype == torch.float32
        self._spans = (_Span * len(spans))(*[_Span(s.first, s.count, s.position, s.pages_P.data_ptr()) for s in spans])
        self._kept = (spans, cos_TR, sin_TR)
        self.struct = _Step(
            len(cos_TR), q_heads, len(spans), ctypes.addressof(self._spans), cos_TR.data_ptr(), sin_TR.data_ptr()
        )


class NativeOps:
    def __init__(self, dtype: torch.dtype) -> None:
        """Builds the kernels where this machine has not yet; raises `NativeError`."""
        so = library(dtype)
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        self._rms_norm = typed(so.rms_norm, pointer, size, pointer, pointer, size, size, number)
        self._silu_and_mul = typed(so.silu_and_mul, pointer, pointer, size, size)
        self._write = typed(so.qk_norm_rope_kv_write, pointer, pointer, size, pointer, pointer, pointer, number)
        self._attention = typed(so.paged_attention, pointer, pointer, size, pointer, pointer)

    def rms_norm(self, x_TE: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
        """x / rms(x) * weight over the last dimension, in fp32, returned in x's dtype. Rows may be strided."""
        rows, size = x_TE.shape
        assert x_TE.stride(1) == 1
        out_TE = torch.empty(rows, size, dtype=x_TE.dtype)
        self._rms_norm(x_TE.data_ptr(), x_TE.stride(0), weight_E.data_ptr(), out_TE.data_ptr(), rows, size, eps)
        return out_TE

    def silu_and_mul(self, gate_up_TF: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of [T, 2 F] -> [T, F], in fp32, rounded once."""
        assert gate_up_TF.is_contiguous()
        rows, width = gate_up_TF.shape
        out_TF = torch.empty(rows, width // 2, dtype=gate_up_TF.dtype)
        self._silu_and_mul(gate_up_TF.data_ptr(), out_TF.data_ptr(), rows, width // 2)
        return out_TF

    def qk_norm_rope_kv_write(
        self,
        cache: PagedCache,
        step: PagedStep,
        layer: int,
        qkv_TND: torch.Tensor,
        *,
        q_weight_D: torch.Tensor | None = None,
        k_weight_D: torch.Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """Norms (Qwen3) and rotates q and k of [T, q heads + 2 kv heads, D]; q in place, k and v into the pages."""
        assert qkv_TND.is_contiguous()
        self._write(
            ctypes.addressof(cache.struct),
            ctypes.addressof(step.struct),
            layer,
            qkv_TND.data_ptr(),
            None if q_weight_D is None else q_weight_D.data_ptr(),
            None if k_weight_D is None else k_weight_D.data_ptr(),
            eps,
        )

    def paged_attention(self, cache: PagedCache, step: PagedStep, layer: int, qkv_TND: torch.Tensor) -> torch.Tensor:
        """Causal attention of the step's queries over their pages: [T, q heads, D]."""
        assert qkv_TND.is_contiguous()
        out_TND = torch.empty(len(qkv_TND), step.struct.q_heads, qkv_TND.shape[2], dtype=qkv_TND.dtype)
        self._attention(
            ctypes.addressof(cache.struct),
            ctypes.addressof(step.struct),
            layer,
            qkv_TND.data_ptr(),
            out_TND.data_ptr(),
        )
        return out_TND
