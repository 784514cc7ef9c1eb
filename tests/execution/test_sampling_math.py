from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.execution.sampling_math import (
    NUCLEUS_CANDIDATES,
    draw,
    nucleus_threshold,
    penalise_,
    token_logprobs,
    truncate_,
    uniform,
)

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.0, -3.0])


def kept(logits_V: torch.Tensor, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list[int]:
    logits_RV = logits_V.clone()[None]
    truncate_(logits_RV, top_k=[top_k], top_p=[top_p], min_p=[min_p])
    return logits_RV[0].isfinite().nonzero()[:, 0].tolist()


def test_uniform_is_a_function_of_seed_and_index_with_known_values() -> None:
    assert uniform(0, 0) == uniform(0, 0)
    assert len({uniform(seed, index) for seed in range(50) for index in range(50)}) == 2500
    # Frozen: a change would alter the text of every seeded request.
    assert uniform(42, 7) == 0.08603176010658542


@given(st.integers(-(2**63), 2**64), st.integers(0, 2**31))
def test_uniform_stays_below_one(seed: int, index: int) -> None:
    assert 0.0 <= uniform(seed, index) < 1.0


def test_uniforms_fill_the_interval_evenly() -> None:
    buckets = Counter(int(uniform(3, index) * 10) for index in range(10_000))
    assert all(900 < buckets[bucket] < 1100 for bucket in range(10))


def test_top_k_keeps_the_k_best_and_zero_keeps_all() -> None:
    assert kept(LOGITS, top_k=2) == [0, 3]
    assert kept(LOGITS, top_k=0) == [0, 1, 2, 3, 4]
    assert kept(LOGITS, top_k=99) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    probabilities = torch.tensor([0.5, 0.05, 0.15, 0.25, 0.05])
    assert kept(probabilities.log(), top_p=0.4) == [0]
    assert kept(probabilities.log(), top_p=0.6) == [0, 3]
    assert kept(probabilities.log(), top_p=0.9) == [0, 2, 3]


def test_min_p_is_relative_to_the_most_likely_token() -> None:
    probabilities = torch.tensor([0.5, 0.05, 0.15, 0.25, 0.05])
    assert kept(probabilities.log(), min_p=0.29) == [0, 2, 3]


def test_top_p_is_taken_of_what_top_k_left() -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert kept(probabilities.log(), top_k=2, top_p=0.55) == [0]


def test_rows_are_truncated_each_by_its_own_parameters() -> None:
    logits_RV = LOGITS.repeat(3, 1)
    truncate_(logits_RV, top_k=[1, 0, 3], top_p=[1.0, 1.0, 1.0], min_p=[0.0, 0.0, 0.0])
    assert logits_RV.isfinite().sum(-1).tolist() == [1, 5, 3]


def test_a_flat_nucleus_wider_than_the_sorted_candidates() -> None:
    vocab = 4 * NUCLEUS_CANDIDATES
    logits_RV = torch.arange(vocab).float()[None] * 1e-4
    threshold = nucleus_threshold(logits_RV, torch.tensor([0.9]))
    share = torch.softmax(logits_RV, -1)[logits_RV >= threshold].sum()
    assert 0.9 <= share < 0.902


def test_draw_takes_the_token_where_the_mass_passes_the_uniform() -> None:
    logits_RV = torch.tensor([0.2, 0.0, 0.3, 0.5]).log().repeat(5, 1)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.51, 1 - 2.0**-52], dtype=torch.float64)
    assert draw(logits_RV, uniforms).tolist() == [0, 0, 2, 3, 3]


def test_draw_never_takes_a_masked_token_at_either_end() -> None:
    logits_RV = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).repeat(2, 1)
    assert draw(logits_RV, torch.tensor([0.0, 1 - 2.0**-52], dtype=torch.float64)).tolist() == [1, 2]


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.6, 0.05, 0.25])
    uniforms = torch.tensor([uniform(9, index) for index in range(20_000)], dtype=torch.float64)
    counts = torch.bincount(draw(probabilities.log().expand(20_000, 4), uniforms), minlength=4)
    torch.testing.assert_close(counts / 20_000, probabilities, atol=0.01, rtol=0)


def test_penalties_as_their_papers_define_them() -> None:
    prompt = torch.tensor([True, True, False, False, False])
    counts = torch.tensor([0, 0, 2, 0, 1], dtype=torch.int32)
    logits = LOGITS.clone()
    penalise_(logits, prompt, counts, repetition=2.0, presence=0.0, frequency=0.0)
    assert logits.tolist() == [1.0, -2.0, 0.25, 1.0, -6.0]
    logits = LOGITS.clone()
    penalise_(logits, prompt, counts, repetition=1.0, presence=0.5, frequency=0.25)
    assert logits.tolist() == [2.0, -1.0, -0.5, 1.0, -3.75]


def test_logprobs_rank_and_alternatives() -> None:
    found = token_logprobs(LOGITS.repeat(2, 1), [2, 0], [2, 0])
    expected = LOGITS.log_softmax(-1)
    assert found[0].rank == 3
    assert found[0].logprob == pytest.approx(expected[2].item())
    assert [token for token, _ in found[0].top] == [0, 3]
    assert found[0].top[1][1] == pytest.approx(expected[3].item())
    assert (found[1].rank, found[1].top) == (1, [])


def test_alternatives_as_likely_as_each_other_do_not_depend_on_other_rows() -> None:
    logits = torch.zeros(2, 3000)
    logits[:, ::3] = 1.0
    alone, beside = token_logprobs(logits[:1], [0], [2]), token_logprobs(logits, [0, 0], [2, 20])
    assert alone[0] == beside[0]
