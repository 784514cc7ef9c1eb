from __future__ import annotations

from collections.abc import Iterator

from measuring import Case, bf16, nbytes
from tandem_kernels.moe_gemm import Picks
from tandem_kernels.moe_route import moe_route

EXPERTS, TOP_K = 128, 8


def cases() -> Iterator[Case]:
    for tokens in (1, 64, 4096):
        logits = bf16(tokens, EXPERTS)
        chosen = moe_route(logits, TOP_K, normalise=True)
        yield Case(f"route {tokens}", lambda: moe_route(logits, TOP_K, normalise=True), nbytes(logits, *chosen))  # noqa: B023
        picks = Picks.of(chosen.experts_TK, EXPERTS)
        yield Case(f"sort {tokens}", lambda: Picks.of(chosen.experts_TK, EXPERTS), nbytes(chosen.experts_TK, *picks))  # noqa: B023
