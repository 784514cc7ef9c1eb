from __future__ import annotations

from typing import Any

import pytest
import torch
from support.kernels import DTYPES, normal
from tandem_kernels.reference import sample as reference
from tandem_kernels.sample import Sampled, SamplingTable, sample
from tandem_runtime.execution.sampling_math import uniform

PLAIN = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "presence": 0.0, "frequency": 0.0}
NO_HISTORY = -1


def row(
    *, top_k: int = 0, seed: int = 0, index: int = 0, history: int = NO_HISTORY, **numbers: float
) -> dict[str, float]:
    return PLAIN | numbers | {"top_k": top_k, "seed": seed, "index": index, "history": history}


def run(logits: torch.Tensor, rows: list[dict[str, float]], history: torch.Tensor | None = None) -> Sampled:
    if history is None:
        history = torch.zeros(1, logits.shape[1], dtype=torch.int32, device=logits.device)
    table = SamplingTable(
        torch.tensor([[r[name] for name in PLAIN] for r in rows], dtype=torch.float32, device=logits.device),
        torch.tensor(
            [[r[name] for name in ("top_k", "seed", "index", "history")] for r in rows],
            dtype=torch.int64,
            device=logits.device,
        ),
    )
    return sample(logits, table, history)


def assert_drawn(token: int, logits_V: torch.Tensor, r: dict[str, float]) -> None:
    """The token is the reference's, or so near a border of the distribution that fp32 may decide otherwise."""
    p_V = reference.distribution(
        logits_V.cpu().double(),
        temperature=r["temperature"],
        top_k=int(r["top_k"]),
        top_p=r["top_p"],
        min_p=r["min_p"],
    )
    u = uniform(int(r["seed"]), int(r["index"]))
    cumulated_V = p_V.cumsum(0)
    assert p_V[token] > 0
    assert cumulated_V[token] - p_V[token] - 1e-6 <= u <= cumulated_V[token] + 1e-6


TRUNCATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**6},
    {"top_p": 0.4},
    {"top_p": 0.99},
    {"min_p": 0.2},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.01},
]


@pytest.mark.parametrize(("vocab", "dtype"), [(10_001, torch.float32), *((41, dtype) for dtype in DTYPES)], ids=str)
def test_draws_from_the_truncated_distribution(vocab: int, dtype: torch.dtype, device: str) -> None:
    rows = [row(seed=i, index=3 * i, **settings) for i, settings in enumerate(TRUNCATIONS)]
    logits = 3 * normal(len(rows), vocab, dtype=dtype, device=device)
    found = run(logits, rows)
    assert torch.equal(found.shaped_RV, logits.float())
    for token, logits_V, r in zip(found.ids_R.tolist(), logits, rows, strict=True):
        assert_drawn(token, logits_V, r)


def test_uniforms_cover_the_distribution(device: str) -> None:
    """Many seeds on one row: each draw is where the sampler on the host would have drawn."""
    logits = normal(1, 97, dtype=torch.float32, device=device).expand(20, 97)
    rows = [row(seed=(-1) ** i * i * 0x1234_5678_9ABC, index=i) for i in range(20)]
    found = run(logits, rows).ids_R.tolist()
    assert len(set(found)) > 5
    for token, r in zip(found, rows, strict=True):
        assert_drawn(token, logits[0], r)


def test_greedy_takes_the_first_of_the_largest(device: str) -> None:
    logits = normal(2, 9_000, dtype=torch.float32, device=device)
    logits[0, [8_999, 8_500, 33]] = 50.0
    found = run(logits, [row(temperature=0.0), row(temperature=0.0, top_k=3, top_p=0.1)])
    assert found.ids_R.tolist() == [33, int(logits[1].argmax())]


def test_ties_at_the_floor_are_kept(device: str) -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -1.0]], device=device).expand(16, 6)
    found = run(logits, [row(top_k=2, seed=seed) for seed in range(16)]).ids_R.tolist()
    assert set(found) == {1, 2, 3, 4}


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 0.2}], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_floors_are_exact_to_the_last_bit(settings: dict[str, Any], sign: float, device: str) -> None:
    value = torch.tensor(sign * 1.5)
    above = torch.nextafter(value, torch.tensor(9.0))
    logits = torch.stack([value, above, value]).to(device).expand(8, 3)
    assert run(logits, [row(seed=seed, **settings) for seed in range(8)]).ids_R.tolist() == [1] * 8


def test_masked_tokens_are_never_drawn(device: str) -> None:
    logits = torch.full((3, 300), -torch.inf, device=device)
    logits[:, [7, 290]] = torch.tensor([1.0, 1.5], device=device)
    found = run(logits, [row(seed=1), row(top_k=50, seed=2), row(top_p=0.999, seed=3)])
    assert set(found.ids_R.tolist()) <= {7, 290}


def test_penalties_and_the_history_they_leave(device: str) -> None:
    vocab = 123
    logits = normal(3, vocab, dtype=torch.float32, device=device)
    history = torch.randint(0, 7, (4, vocab), dtype=torch.int32).to(device)
    before = history.clone()
    penalties: dict[str, Any] = {"repetition": 1.3, "presence": 0.4, "frequency": 0.2}
    rows = [
        row(temperature=0.0, history=2, **penalties),
        row(seed=5, history=0, **penalties),
        row(seed=5, **penalties),
    ]
    found = run(logits, rows, history)
    for i, r in enumerate(rows[:2]):
        slot = int(r["history"])
        expected = reference.penalise(logits[i].double(), before[slot], **penalties)
        torch.testing.assert_close(found.shaped_RV[i].double(), expected, rtol=1e-5, atol=1e-5)
        before[slot, found.ids_R[i]] += 2
    assert int(found.ids_R[0]) == int(found.shaped_RV[0].argmax())
    assert_drawn(int(found.ids_R[1]), found.shaped_RV[1], rows[1])
    assert torch.equal(found.shaped_RV[2], logits[2])
    assert torch.equal(history, before)


def test_a_row_does_not_depend_on_its_batch(device: str) -> None:
    logits = normal(3, 200, dtype=torch.float16, device=device)
    rows = [row(seed=i, top_p=0.9) for i in range(3)]
    together = run(logits, rows).ids_R.tolist()
    assert [run(logits[i : i + 1], rows[i : i + 1]).ids_R.tolist()[0] for i in range(3)] == together
