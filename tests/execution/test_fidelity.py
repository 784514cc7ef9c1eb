"""The executor against transformers, fp32: the same distributions however a sequence is cut, cached or batched."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reference import reference_logprobs, reference_model
from support.step_driver import GREEDY, StepDriver, distribution, full_logprobs, load_runner
from support.tiny_models import FAMILIES, Family
from tandem_runtime.core.plan import StepResult
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.settings import Backend

Tiny = Callable[..., Path]
TOLERANCE = 1e-4


def random_prompt(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= TOLERANCE


def prompt_distributions(result: StepResult, chunk: int = 0) -> torch.Tensor:
    """[tokens, vocab] out of prompt logprobs that ask for the whole vocabulary."""
    rows = []
    for position in result.prompt_logprobs[chunk]:
        row = torch.empty(len(position.top))
        row[[token for token, _ in position.top]] = torch.tensor([value for _, value in position.top])
        rows.append(row)
    return torch.stack(rows)


@pytest.fixture(scope="module", params=[*((family, "native") for family in FAMILIES), ("qwen3", "eager")], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Family, Backend]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def family(case: tuple[Family, Backend]) -> Family:
    return case[0]


@pytest.fixture(scope="module")
def folder(tiny: Tiny, family: Family) -> Path:
    return tiny(family)


@pytest.fixture(scope="module")
def runner(folder: Path, case: tuple[Family, Backend]) -> ModelRunner:
    return load_runner(folder, backend=case[1])


def test_whole_prefill_matches_at_every_position(runner: ModelRunner, folder: Path) -> None:
    prompt = random_prompt(90, seed=1)
    vocab = runner.config.model.vocab_size
    driver = StepDriver(runner)
    driver.start(0, prompt, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=vocab))
    result = driver.step(driver.chunk(0, 0, prompt))
    assert_close(prompt_distributions(result), reference_logprobs(reference_model(folder), prompt)[:-1])
    assert [p.token_id for p in result.prompt_logprobs[0]] == prompt[1:]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_chunking_matches(runner: ModelRunner, folder: Path, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 50))
    splits = data.draw(st.sets(st.integers(1, length - 1), max_size=8))
    prompt = random_prompt(length, seed=length)
    driver = StepDriver(runner)
    driver.start(2, prompt, full_logprobs(runner))
    borders = [0, *sorted(splits), length]
    for begin, end in itertools.pairwise(borders):
        result = driver.step(driver.chunk(2, begin, prompt[begin:end], sample=end == length))
    assert_close(distribution(result), reference_logprobs(reference_model(folder), prompt)[-1])


@pytest.mark.parametrize("shared_pages", [1, 5])
def test_prefix_reuse_matches(runner: ModelRunner, folder: Path, shared_pages: int) -> None:
    held = shared_pages * runner.layout.page_size
    first, tail = random_prompt(held + 3, seed=3), random_prompt(11, seed=4)
    second = first[:held] + tail
    driver = StepDriver(runner)
    driver.start(0, first)
    driver.prefill(0, first)
    driver.start(1, second, full_logprobs(runner), pages=driver.pages[0][:shared_pages])
    result = driver.step(driver.chunk(1, held, tail, sample=True))
    assert_close(distribution(result), reference_logprobs(reference_model(folder), second)[-1])


def test_mixed_decodes_and_chunks_of_unlike_lengths_match(runner: ModelRunner, folder: Path) -> None:
    model = reference_model(folder)
    lengths = {0: 1, 1: 6, 2: 130, 3: 131}
    prompts = {slot: random_prompt(length, seed=slot) for slot, length in lengths.items()}
    driver = StepDriver(runner)
    sampled = {}
    for slot, prompt in prompts.items():
        driver.start(slot, prompt, full_logprobs(runner))
        sampled[slot] = driver.prefill(slot, prompt)
    whole, cut = random_prompt(17, seed=11), random_prompt(29, seed=12)
    driver.start(4, whole, full_logprobs(runner))
    driver.start(5, cut, full_logprobs(runner))
    driver.step(driver.chunk(5, 0, cut[:10]))
    result = driver.step(
        *(driver.chunk(slot, length, None, sample=True) for slot, length in lengths.items()),
        driver.chunk(4, 0, whole, sample=True),
        driver.chunk(5, 10, cut[10:], sample=True),
    )
    texts = [*(prompts[slot] + [sampled[slot]] for slot in lengths), whole, cut]
    for index, text in enumerate(texts):
        assert_close(distribution(result, index), reference_logprobs(model, text)[-1])


def test_one_token_chunk_after_a_longer_one_is_told_apart(runner: ModelRunner, folder: Path) -> None:
    """The plan may end with a one-token chunk; the model computes one-token rows first all the same."""
    long, short = random_prompt(9, seed=5), random_prompt(4, seed=6)
    driver = StepDriver(runner)
    driver.start(0, long, full_logprobs(runner))
    driver.start(1, short, full_logprobs(runner))
    driver.step(driver.chunk(1, 0, short[:3]))
    result = driver.step(driver.chunk(0, 0, long, sample=True), driver.chunk(1, 3, short[3:], sample=True))
    for index, text in enumerate((long, short)):
        assert_close(distribution(result, index), reference_logprobs(reference_model(folder), text)[-1])


def test_preempted_and_resumed_continues_the_same(runner: ModelRunner, folder: Path) -> None:
    prompt = random_prompt(21, seed=7)
    driver = StepDriver(runner)
    driver.start(0, prompt)
    output = [driver.prefill(0, prompt)]
    output += driver.decode({0: len(prompt)}, 6)[0]
    driver.start(3, prompt, full_logprobs(runner), output=output)
    text = prompt + output
    driver.step(driver.chunk(3, 0, text[:10]))
    result = driver.step(driver.chunk(3, 10, text[10:], sample=True))
    assert_close(distribution(result), reference_logprobs(reference_model(folder), text)[-1])


def test_greedy_ids_equal_over_64_tokens_for_50_prompts(runner: ModelRunner, folder: Path) -> None:
    """Teacher-forced: every sampled id is the reference's argmax after the ids before it."""
    model = reference_model(folder)
    generator = torch.Generator().manual_seed(8)
    lengths = torch.randint(1, 60, (50,), generator=generator).tolist()
    prompts = [random_prompt(length, seed=100 + i) for i, length in enumerate(lengths)]
    for first in range(0, len(prompts), 8):
        batch = dict(enumerate(prompts[first : first + 8]))
        driver = StepDriver(runner)
        outputs = {}
        for slot, prompt in batch.items():
            driver.start(slot, prompt, GREEDY)
            outputs[slot] = [driver.prefill(slot, prompt)]
        for slot, ids in driver.decode({slot: len(prompt) for slot, prompt in batch.items()}, 63).items():
            outputs[slot] += ids
        for slot, prompt in batch.items():
            best = reference_logprobs(model, prompt + outputs[slot]).argmax(-1).tolist()
            assert outputs[slot] == best[len(prompt) - 1 : -1]
