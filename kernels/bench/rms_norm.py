from __future__ import annotations

from collections.abc import Iterator

from measuring import Case, bf16, nbytes
from tandem_kernels.rms_norm import add_rms_norm, rms_norm

HIDDEN = 5120


def cases() -> Iterator[Case]:
    for rows in (1, 64, 512, 4096, 16384):
        x, residual, weight = bf16(rows, HIDDEN), bf16(rows, HIDDEN), bf16(HIDDEN)
        yield Case(f"rms_norm {rows}", lambda: rms_norm(x, weight, 1e-6), 2 * nbytes(x))  # noqa: B023
        yield Case(f"add_rms_norm {rows}", lambda: add_rms_norm(x, residual, weight, 1e-6), 4 * nbytes(x))  # noqa: B023
