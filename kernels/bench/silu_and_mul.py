from __future__ import annotations

from collections.abc import Iterator

from measuring import Case, bf16, nbytes
from tandem_kernels.silu_and_mul import silu_and_mul

INTERMEDIATE = 25600


def cases() -> Iterator[Case]:
    for rows in (1, 64, 512, 4096):
        gate_up = bf16(rows, 2 * INTERMEDIATE)
        yield Case(f"rows {rows}", lambda: silu_and_mul(gate_up), 1.5 * nbytes(gate_up))  # noqa: B023
