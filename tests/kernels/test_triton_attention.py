"""The `triton` attention backend against the eager one, over the same plans: equal outputs, equal caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from support.kernels import normal
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.attention.backend import HeadNorms
from tandem_runtime.execution.attention.eager import EagerAttention
from tandem_runtime.execution.attention.triton import TritonAttention
from tandem_runtime.execution.layers.norm import RMSNorm
from tandem_runtime.execution.layers.rope import Rope
from tandem_runtime.execution.samplers import EagerSampler
from tandem_runtime.execution.slots import SlotTables

GREEDY = SamplingParams(max_tokens=9, temperature=0.0)
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
LAYERS, PAGE_SIZE = 2, 4
PLANS = [
    StepPlan(0, [SlotStart(1, [0] * 9, [], [5, 2, 7], GREEDY)], [Chunk(1, 0, 9, [0] * 9, [], True)]),
    StepPlan(1, [], [Chunk(1, 9, 1, [0], [], True)]),
    StepPlan(
        2,
        [SlotStart(0, [0] * 13, [], [1], GREEDY), SlotStart(3, [0], [], [9], GREEDY)],
        [Chunk(1, 10, 1, [0], [], True), Chunk(3, 0, 1, [0], [], True), Chunk(0, 0, 7, [0] * 7, [3], False)],
    ),
    StepPlan(3, [], [Chunk(1, 11, 1, [0], [], True), Chunk(0, 7, 6, [0] * 6, [8, 0], True)]),
    StepPlan(4, [], [Chunk(3, 1, 1, [0], [], True), Chunk(0, 13, 1, [0], [], True), Chunk(1, 12, 1, [0], [6], True)]),
]


@dataclass(frozen=True)
class Norm:
    """`RMSNorm` without a checkpoint."""

    weight: torch.Tensor
    eps: float = 1e-6

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def head_norms(q_D: torch.Tensor, k_D: torch.Tensor) -> HeadNorms:
    return HeadNorms(cast(RMSNorm, Norm(q_D)), cast(RMSNorm, Norm(k_D)))


@pytest.mark.parametrize("rope", [PLAIN, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(6, 2, 16), (5, 1, 64)])
def test_equals_the_eager_backend(heads: int, kv_heads: int, head_dim: int, rope: dict[str, Any], device: str) -> None:
    shape = (10, kv_heads, LAYERS, 2, PAGE_SIZE, head_dim)
    host = EagerAttention(
        torch.zeros(shape), num_q_heads=heads, rope=Rope(rope, head_dim, dtype=torch.float32, device="cpu")
    )
    kernels = TritonAttention(
        torch.zeros(shape, device=device),
        num_q_heads=heads,
        rope=Rope(rope, head_dim, dtype=torch.float32, device=device),
        max_num_seqs=4,
        max_pages_per_seq=5,
    )
    tables = SlotTables(max_num_seqs=4, max_pages_per_seq=5, device="cpu", history=EagerSampler(vocab_size=8).history)
    weights = [normal(head_dim, dtype=torch.float32, device="cpu") for _ in range(2)]
    norms = head_norms(*weights) if rope is YARN else None
    norms_there = head_norms(*(weight.to(device) for weight in weights)) if rope is YARN else None
    for plan in PLANS:
        step = tables.lay_out(plan)
        host.begin(step.batch)
        kernels.begin(step.batch)
        for layer in range(LAYERS):
            qkv = normal(len(step.batch.ids_T), heads + 2 * kv_heads, head_dim, dtype=torch.float32, device="cpu")
            expected = host.attend(layer, qkv.clone(), norms)
            found = kernels.attend(layer, qkv.to(device), norms_there)
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kernels.kv_PHLCSD.cpu(), host.kv_PHLCSD, rtol=1e-5, atol=1e-5)
