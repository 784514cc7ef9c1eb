"""Rows with drafts: what penalties count at each of them, and what stays counted when some were wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from support.step_driver import tiny_execution_config
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.sampler import History, SampleRow, follow_drafts, sample

VOCABULARY = 11
Tiny = Callable[..., Path]
PENALISED = SamplingParams(
    max_tokens=99,
    temperature=0.9,
    seed=3,
    repetition_penalty=1.4,
    presence_penalty=0.7,
    frequency_penalty=0.5,
    logprobs=4,
)


def history(output: list[int]) -> History:
    return History([1, 2, 2], output, VOCABULARY, "cpu")


def test_each_row_counts_the_drafts_before_it() -> None:
    seen = follow_drafts(history([4]), [4, 7, 4])
    assert [row.counts_V.tolist() for row in seen] == [
        history(output).counts_V.tolist() for output in ([4], [4, 4], [4, 4, 7], [4, 4, 7, 4])
    ]


@pytest.mark.parametrize("right", list(product([True, False], repeat=3)))
def test_only_what_follows_right_drafts_is_counted(right: tuple[bool, ...]) -> None:
    drafts = [4, 7, 4]
    sampled = [token if ok else token + 1 for token, ok in zip(drafts, right, strict=True)] + [9]
    kept = history([5])
    for row, token in zip(follow_drafts(kept, drafts), sampled, strict=True):
        row.add(torch.tensor([token]))
    accepted = ([*right, False]).index(False)
    assert kept.counts_V.tolist() == history([5, *sampled[: accepted + 1]]).counts_V.tolist()


def test_rows_with_drafts_are_sampled_as_one_after_the_other() -> None:
    logits_RV = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(2)) * 3
    text: list[int] = []
    one_by_one = []
    for index in range(4):
        ids, logprobs = sample(logits_RV[index : index + 1].clone(), [SampleRow(PENALISED, index, history(text))])
        text += ids.tolist()
        one_by_one.append(logprobs[0])
    rows = [SampleRow(PENALISED, i, seen) for i, seen in enumerate(follow_drafts(history([]), text[:3]))]
    ids, logprobs = sample(logits_RV.clone(), rows)
    assert ids.tolist() == text
    assert list(logprobs.values()) == one_by_one


@pytest.mark.parametrize(
    ("flags", "samples"),
    [
        ({}, 8),
        ({"speculative_method": "ngram"}, 40),
        ({"speculative_method": "ngram", "max_num_batched_tokens": 30}, 30),
    ],
)
def test_memory_is_kept_for_all_that_a_step_samples(tiny: Tiny, flags: dict[str, object], samples: int) -> None:
    assert tiny_execution_config(tiny("llama"), **flags).max_num_samples == samples
