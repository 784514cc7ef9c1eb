from __future__ import annotations

from collections.abc import Iterator

import torch
from measuring import Case, bf16, nbytes
from tandem_kernels.sample import SamplingTable, sample

VOCAB = 151936
SETTINGS = {
    "greedy": (0.0, 1.0, 0),
    "temperature": (0.7, 1.0, 0),
    "top-k": (0.7, 1.0, 20),
    "top-p": (0.7, 0.8, 0),
    "top-k top-p": (0.7, 0.8, 20),
}


def cases() -> Iterator[Case]:
    for batch in (1, 64, 256):
        for name, (temperature, top_p, top_k) in SETTINGS.items():
            logits, history = bf16(batch, VOCAB), torch.zeros((batch, VOCAB), dtype=torch.int32, device="cuda")
            numbers = torch.tensor([[temperature, top_p, 0.0, 1.0, 0.0, 0.0]] * batch, device="cuda")
            integers = torch.tensor([[top_k, i, 0, -1] for i in range(batch)], device="cuda")
            table = SamplingTable(numbers, integers)
            yield Case(f"{name}, batch {batch}", lambda: sample(logits, table, history), 3 * nbytes(logits))  # noqa: B023
