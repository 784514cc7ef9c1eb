from __future__ import annotations

from collections.abc import Iterator

from measuring import Case, bf16, nbytes
from tandem_kernels.moe_combine import moe_combine

HIDDEN, TOP_K = 4096, 8


def cases() -> Iterator[Case]:
    for tokens in (1, 64, 4096):
        y, residual = bf16(tokens * TOP_K, HIDDEN), bf16(tokens, HIDDEN)
        yield Case(f"tokens {tokens}", lambda: moe_combine(y, TOP_K, residual), nbytes(y) + 2 * nbytes(residual))  # noqa: B023
