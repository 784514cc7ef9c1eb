from __future__ import annotations

from collections.abc import Iterator

from measuring import Case, bf16, nbytes
from tandem_kernels.fp8_quantize import fp8_quantize

COLUMNS = 5120


def cases() -> Iterator[Case]:
    for rows in (1, 64, 4096):
        x = bf16(rows, COLUMNS)
        yield Case(f"rows {rows}", lambda: fp8_quantize(x), nbytes(x, *fp8_quantize(x)))  # noqa: B023
