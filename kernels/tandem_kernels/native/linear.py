"""Weights in the layout that the product of pairs reads: bfloat16 on processors with avx512_bf16 and without AMX."""

from __future__ import annotations

import ctypes

import torch

from tandem_kernels.native.library import library, typed

DTYPE = torch.bfloat16


def has_packed_linear(dtype: torch.dtype) -> bool:
    """Whether `PackedWeight` works here; raises `NativeError` where no kernel does."""
    return dtype == DTYPE and hasattr(library(dtype), "linear")


class PackedWeight:
    """W [n, k] of y = x W^T, the only copy of its numbers."""

    def __init__(self, n: int, k: int) -> None:
        """All zeros."""
        so = library(DTYPE)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._n, self._k = n, k
        self._pack = typed(so.linear_pack, pointer, pointer, size, size, size)
        self._unpack = typed(so.linear_rows, pointer, pointer, pointer, size, size)
        self._product = typed(so.linear, *[pointer] * 5, size, size, size)
        so.linear_packed_size.restype = size
        self._numbers = torch.zeros(so.linear_packed_size(size(n), size(k)), dtype=DTYPE)

    def write(self, first: int, rows_NK: torch.Tensor) -> None:
        """Rows `first` onwards."""
        count, k = rows_NK.shape
        assert k == self._k
        assert 0 <= first <= first + count <= self._n
        assert rows_NK.is_contiguous()
        assert rows_NK.dtype == DTYPE
        self._pack(rows_NK.data_ptr(), self._numbers.data_ptr(), first, count, k)

    def rows(self, ids_T: torch.Tensor) -> torch.Tensor:
        """[T, k], plain: an embedding's lookup. Ids are int64 and below n."""
        assert ids_T.dtype == torch.int64
        assert ids_T.is_contiguous()
        out_TK = torch.empty(len(ids_T), self._k, dtype=DTYPE)
        self._unpack(self._numbers.data_ptr(), ids_T.data_ptr(), out_TK.data_ptr(), len(ids_T), self._k)
        return out_TK

    def product(
        self, x_TK: torch.Tensor, bias_N: torch.Tensor | None = None, residual_TN: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x W^T + bias + residual: [T, n], summed in fp32 and rounded once."""
        out_TN = torch.empty(len(x_TK), self._n, dtype=DTYPE)
        assert x_TK.shape[1] == self._k
        assert x_TK.dtype == DTYPE
        assert x_TK.is_contiguous()
        if residual_TN is not None:
            assert residual_TN.shape == out_TN.shape
            assert residual_TN.dtype == DTYPE
            assert residual_TN.is_contiguous()
        self._product(
            x_TK.data_ptr(),
            self._numbers.data_ptr(),
            None if bias_N is None else bias_N.data_ptr(),
            None if residual_TN is None else residual_TN.data_ptr(),
            out_TN.data_ptr(),
            len(x_TK),
            self._n,
            self._k,
        )
        return out_TN
