"""Bit for bit the same distributions and KV, whatever a sequence is computed with, in every dtype the CPU serves.

Rounding that depends on the batch turns near ties: the same seed would give another text under load, and a prompt
computed on a prefill pod another than one computed at home.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.step_driver import StepDriver, distribution, full_logprobs, load_runner
from support.tiny_models import FAMILIES
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.runner import ModelRunner

Tiny = Callable[..., Path]
LENGTH = 75
OTHERS = {1: 40, 2: 1, 3: 17}
"""The lengths of the sequences beside the one that is looked at."""
CASES = [(family, "bfloat16") for family in FAMILIES] + [("qwen3", "float16"), ("qwen3", "float32")]


@pytest.fixture(scope="module", params=CASES, ids=str)
def runner(request: pytest.FixtureRequest, tiny: Tiny) -> ModelRunner:
    family, dtype = request.param
    # Wide enough that oneDNN and the kernels take the paths of real models; experts see single rows.
    folder = tiny(family, hidden_size=264, intermediate_size=1100, head_dim=32)
    return load_runner(folder, backend="native", dtype=dtype, kv_cache_memory="64MiB", cpu_threads=2)


def prompt_of(length: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def kv_of(runner: ModelRunner, pages: list[int], tokens: int) -> torch.Tensor:
    """[heads, layers, 2, tokens, dim], as bits."""
    layout, model = runner.layout, runner.config.model
    shape = (-1, model.num_kv_heads, model.num_layers, 2, layout.page_size, model.head_dim)
    kv = runner.kv_bytes()[pages].view(runner.config.torch_dtype).view(shape)
    return kv.permute(1, 2, 3, 0, 4, 5).flatten(3, 4)[:, :, :, :tokens].contiguous().view(torch.uint8)


def alone(runner: ModelRunner) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompt in one chunk: the next token's distribution, and the KV."""
    driver = StepDriver(runner)
    driver.start(0, prompt_of(LENGTH), full_logprobs(runner))
    result = driver.step(driver.chunk(0, 0, prompt_of(LENGTH), sample=True))
    return distribution(result), kv_of(runner, driver.pages[0], LENGTH)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_chunks_of_any_size_beside_other_sequences(runner: ModelRunner, data: st.DataObject) -> None:
    """The last chunk is often a single token: what a decode pod computes after a handoff."""
    expected, expected_kv = alone(runner)
    borders = [0, *sorted(data.draw(st.sets(st.integers(1, LENGTH - 1), max_size=5))), LENGTH]
    if data.draw(st.booleans()):
        borders = [*borders[:-1], LENGTH - 1, LENGTH] if borders[-2] != LENGTH - 1 else borders
    prompt = prompt_of(LENGTH)
    driver = StepDriver(runner)
    driver.start(0, prompt, full_logprobs(runner))
    beside = data.draw(st.sets(st.sampled_from(sorted(OTHERS))))
    for slot in beside:
        driver.start(slot, prompt_of(OTHERS[slot]))
        driver.prefill(slot, prompt_of(OTHERS[slot]))
    for step, (begin, end) in enumerate(itertools.pairwise(borders)):
        decodes = [driver.chunk(slot, OTHERS[slot] + step, None, sample=True) for slot in sorted(beside)]
        mine = driver.chunk(0, begin, prompt[begin:end], sample=end == LENGTH)
        # Rows of one token come first: see `core.plan`.
        chunks = [mine, *decodes] if end - begin == 1 else [*decodes, mine]
        result = driver.step(*chunks)
    assert torch.equal(distribution(result, chunks.index(mine)), expected)
    assert torch.equal(kv_of(runner, driver.pages[0], LENGTH), expected_kv)


def test_seeded_texts_alone_and_in_a_batch(runner: ModelRunner) -> None:
    sampling = [SamplingParams(max_tokens=64, temperature=1.0, top_p=0.95, top_k=40, seed=seed) for seed in range(6)]
    prompts = [prompt_of(20 + 7 * seed) for seed in range(6)]

    def texts(together: list[list[int]]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for slots in together:
            driver = StepDriver(runner)
            first = {}
            for slot in slots:
                driver.start(slot, prompts[slot], sampling[slot])
                first[slot] = driver.prefill(slot, prompts[slot])
            rest = driver.decode({slot: len(prompts[slot]) for slot in slots}, 40)
            found |= {slot: [first[slot], *rest[slot]] for slot in slots}
        return found

    assert texts([[0, 1, 2, 3, 4, 5]]) == texts([[0], [1, 2], [3, 4, 5]])
