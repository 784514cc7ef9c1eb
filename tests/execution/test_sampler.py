"""Sampling inside the runner: what one sequence draws never depends on what runs beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.reference import reference_logits, reference_model
from support.step_driver import StepDriver, load_runner
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.sampler import History, SampleRow, sample

PROMPT = [(13 * i * i + 5 * i) % 256 for i in range(23)]
MAX = 1 << 20


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny("llama")


@pytest.fixture(scope="module")
def runner(folder: Path) -> ModelRunner:
    return load_runner(folder)


def generate(runner: ModelRunner, sampling: SamplingParams, steps: int = 24) -> list[int]:
    driver = StepDriver(runner)
    driver.start(0, PROMPT, sampling)
    return [driver.prefill(0, PROMPT), *driver.decode({0: len(PROMPT)}, steps)[0]]


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_tokens=MAX, seed=5),
        SamplingParams(max_tokens=MAX, seed=6, top_p=0.8, temperature=1.5),
        SamplingParams(max_tokens=MAX, seed=7, top_k=5, min_p=0.05),
        SamplingParams(max_tokens=MAX, temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.4),
    ],
)
def test_same_seed_same_text_alone_or_in_a_batch(runner: ModelRunner, sampling: SamplingParams) -> None:
    alone = generate(runner, sampling)
    assert alone == generate(runner, sampling)
    driver = StepDriver(runner)
    neighbours = {
        1: SamplingParams(max_tokens=MAX, seed=1, presence_penalty=1.0, repetition_penalty=1.2),
        2: SamplingParams(max_tokens=MAX, temperature=0.0),
        3: SamplingParams(max_tokens=MAX, seed=2, top_k=3, logprobs=2),
    }
    sampled = {}
    for slot, params in {0: sampling, **neighbours}.items():
        driver.start(slot, PROMPT, params)
        sampled[slot] = driver.prefill(slot, PROMPT, splits=[slot + 1])
    together = driver.decode({slot: len(PROMPT) for slot in (3, 0, 2, 1)}, 24)
    assert [sampled[0], *together[0]] == alone


def test_other_seed_other_text(runner: ModelRunner) -> None:
    texts = {tuple(generate(runner, SamplingParams(max_tokens=MAX, seed=seed))) for seed in range(4)}
    assert len(texts) == 4


@pytest.mark.parametrize("penalised", [False, True])
def test_a_preempted_sequence_draws_what_it_would_have_drawn(runner: ModelRunner, penalised: bool) -> None:
    sampling = SamplingParams(max_tokens=MAX, seed=3, frequency_penalty=0.7 if penalised else 0.0)
    text = generate(runner, sampling)
    kept = text[:10]
    driver = StepDriver(runner)
    driver.start(5, PROMPT, sampling, output=kept)
    resumed = [driver.prefill(5, PROMPT + kept), *driver.decode({5: len(PROMPT) + len(kept)}, 14)[5]]
    assert kept + resumed == text


def test_repetition_penalty_equals_transformers(runner: ModelRunner, folder: Path) -> None:
    found = generate(runner, SamplingParams(max_tokens=MAX, temperature=0.0, repetition_penalty=1.8))
    model = reference_model(folder)
    with torch.inference_mode():
        generated = model.generate(
            torch.tensor([PROMPT]),
            attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
            max_new_tokens=len(found),
            do_sample=False,
            repetition_penalty=1.8,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert found == generated[0, len(PROMPT) :].tolist()


def test_logit_bias_forbids_and_forces(runner: ModelRunner) -> None:
    best = generate(runner, SamplingParams(max_tokens=MAX, temperature=0.0), steps=0)[0]
    banned = SamplingParams(max_tokens=MAX, temperature=0.0, logit_bias={best: -100.0})
    forced = SamplingParams(max_tokens=MAX, seed=1, logit_bias={17: 100.0})
    assert best not in generate(runner, banned)
    assert set(generate(runner, forced)) == {17}


def test_stop_tokens_are_masked_until_min_tokens(runner: ModelRunner) -> None:
    forced = SamplingParams(
        max_tokens=MAX, temperature=0.0, logit_bias={258: 100.0}, stop_token_ids=(258,), min_tokens=3
    )
    text = generate(runner, forced, steps=5)
    assert 258 not in text[:3]
    assert text[3:] == [258] * 3


def test_logprobs_are_of_the_untruncated_distribution(runner: ModelRunner, folder: Path) -> None:
    driver = StepDriver(runner)
    driver.start(0, PROMPT, SamplingParams(max_tokens=MAX, seed=4, top_k=1, temperature=0.3, logprobs=4))
    result = driver.step(driver.chunk(0, 0, PROMPT, sample=True))
    found = result.logprobs[0]
    expected = reference_logits(reference_model(folder), PROMPT)[-1].log_softmax(-1)
    assert (found.token_id, found.rank) == (int(expected.argmax()), 1)
    assert found.logprob == pytest.approx(expected.max().item(), abs=1e-4)
    assert [token for token, _ in found.top] == expected.topk(4).indices.tolist()


def test_a_penalty_touches_its_own_row_only() -> None:
    history = History([1], [], 3, "cpu")
    plain = SampleRow(SamplingParams(max_tokens=9, temperature=0.0), 0, None)
    penalised = SampleRow(SamplingParams(max_tokens=9, temperature=0.0, presence_penalty=5.0), 0, history)
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    drawn = [sample(logits.repeat(2, 1), [plain, penalised])[0].tolist() for _ in range(3)]
    assert drawn == [[1, 1], [1, 2], [1, 0]]
    assert history.counts_V.tolist() == [1, 1, 1]
