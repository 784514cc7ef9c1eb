"""Two ranks over gloo, in processes of their own, against one transformers model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support.reference import reference_logprobs, reference_model
from support.step_driver import distribution
from support.tiny_models import VOCAB_SIZE, Family
from support.tp_ranks import execute_on_ranks
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan, StepResult
from tandem_runtime.core.sampling import SamplingParams

PROMPT = [(11 * i * i + i) % 256 for i in range(19)]
DECODE_STEPS = 4
CASES: dict[str, tuple[Family, dict[str, Any]]] = {
    "llama tied": ("llama", {}),
    "qwen2 bias": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "uneven vocabulary": ("llama", {"vocab_size": VOCAB_SIZE + 1}),
    "attention and mlp bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "more ranks than KV heads": ("qwen3", {"num_key_value_heads": 1}),
}


def _plans(vocab_size: int) -> list[StepPlan]:
    sampling = SamplingParams(max_tokens=99, temperature=0.0, logprobs=vocab_size)
    start = SlotStart(1, PROMPT, [], [0, 1, 2], sampling)
    first = Chunk(1, 0, 12, PROMPT[:12], [], False)
    second = Chunk(1, 12, len(PROMPT) - 12, PROMPT[12:], [3, 4], True)
    decodes = [Chunk(1, len(PROMPT) + i, 1, None, [5] if i == 1 else [], True) for i in range(DECODE_STEPS)]
    plans = [StepPlan(1, [start], [first]), StepPlan(2, [], [second])]
    return plans + [StepPlan(3 + i, [], [chunk]) for i, chunk in enumerate(decodes)]


@pytest.mark.processes
def test_two_ranks_match_one_reference(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folders = {name: tiny(family, **overrides) for name, (family, overrides) in CASES.items()}
    plans = {name: _plans(overrides.get("vocab_size", VOCAB_SIZE)) for name, (_, overrides) in CASES.items()}
    results = execute_on_ranks([(folders[n], plans[n]) for n in CASES], world=2, tmp_path=tmp_path)
    _assert_alike(CASES, folders, results)


@pytest.mark.processes
def test_two_ranks_that_share_experts_match_one_reference(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folders = {"qwen3_moe": tiny("qwen3_moe")}
    results = execute_on_ranks(
        [(folders["qwen3_moe"], _plans(VOCAB_SIZE))], world=2, tmp_path=tmp_path, expert_parallel=True
    )
    _assert_alike(folders, folders, results)


@pytest.mark.processes
def test_two_ranks_verify_drafts(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Each position as if the drafts before it were the sequence's; the rank that does not sample hears of all."""
    folder, drafts = tiny("qwen3"), [40, 41]
    sampling = SamplingParams(max_tokens=99, temperature=0.0, logprobs=VOCAB_SIZE)
    start = SlotStart(1, PROMPT, [], [0, 1, 2, 3, 4, 5], sampling)
    rest = [*PROMPT[12:], *drafts]
    plans = [
        StepPlan(1, [start], [Chunk(1, 0, 12, PROMPT[:12], [], False)]),
        StepPlan(2, [], [Chunk(1, 12, len(rest), rest, [], True, num_drafts=len(drafts))]),
    ]
    [(leader, follower)] = execute_on_ranks([(folder, plans)], world=2, tmp_path=tmp_path)
    assert leader[1].token_ids == follower[1].token_ids
    expected = reference_logprobs(reference_model(folder), PROMPT + drafts)
    for i in range(3):
        assert (distribution(leader[1], i) - expected[len(PROMPT) - 1 + i]).abs().max() <= 1e-4


def _assert_alike(names: Iterable[str], folders: dict[str, Path], results: list[list[list[StepResult]]]) -> None:
    for name, (leader, follower) in zip(names, results, strict=True):
        sampled = [result.token_ids[0] for result in leader[1:]]
        assert sampled == [result.token_ids[0] for result in follower[1:]], name
        expected = reference_logprobs(reference_model(folders[name]), PROMPT + sampled)
        for i, result in enumerate(leader[1:]):
            difference = (distribution(result) - expected[len(PROMPT) - 1 + i]).abs().max()
            assert difference <= 1e-4, (name, i, difference)
