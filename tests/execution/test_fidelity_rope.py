"""Scaled rotary embeddings against transformers, from the config and from --rope-scaling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.reference import reference_logprobs, reference_model
from support.step_driver import StepDriver, distribution, full_logprobs, load_runner
from tandem_runtime.execution.layers.rope import frequencies
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
PROMPT = [(7 * i * i + 3 * i) % 256 for i in range(150)]


@pytest.mark.parametrize(
    "rope",
    [
        YARN,
        YARN | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 16.0},
        YARN | {"attention_factor": 1.5, "truncate": False},
        LLAMA3,
        LINEAR,
    ],
)
def test_frequencies_equal_transformers(rope: dict[str, Any]) -> None:
    config = LlamaConfig(head_dim=64, max_position_embeddings=4096, rope_parameters=rope)
    expected, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    inv_freq, attention_factor = frequencies(rope, 64)
    torch.testing.assert_close(inv_freq, expected, rtol=1e-6, atol=0)
    assert attention_factor == pytest.approx(factor)


@pytest.mark.parametrize("rope", [YARN, LLAMA3, LINEAR], ids=lambda rope: rope["rope_type"])
def test_scaling_in_the_config(tiny: Callable[..., Path], rope: dict[str, Any]) -> None:
    _compare(tiny("qwen3", rope_parameters=rope), reference_rope=None)


def test_yarn_by_flag_extends_a_plain_checkpoint(tiny: Callable[..., Path]) -> None:
    folder = tiny("qwen3", max_position_embeddings=64)
    scaling = {k: v for k, v in YARN.items() if k != "rope_theta"}
    runner = _compare(folder, reference_rope=YARN, rope_scaling=json.dumps(scaling))
    assert runner.config.max_model_len == 256


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_yarn_far_beyond_the_original_length(tiny: Callable[..., Path], family: str) -> None:
    """Every position of a prompt 32 times the original length, and decode steps after it."""
    length, original = 4096, 128
    folder = tiny(family, max_position_embeddings=original)
    runner = load_runner(folder, rope_scaling="yarn", max_model_len=length)
    prompt = [(7 * i * i + 3 * i) % 256 for i in range(length - 8)]
    driver = StepDriver(runner)
    driver.start(0, prompt, full_logprobs(runner))
    found, tokens = [], list(prompt)
    for begin in range(0, len(prompt), 512):
        last = begin + 512 >= len(prompt)
        result = driver.step(driver.chunk(0, begin, prompt[begin : begin + 512], sample=last))
    for position in range(len(prompt), length - 1):
        found.append(distribution(result))
        tokens += result.token_ids
        result = driver.step(driver.chunk(0, position, None, sample=True))
    rope = {"rope_type": "yarn", "factor": length / original, "original_max_position_embeddings": original}
    theta = runner.config.model.rope["rope_theta"]
    reference = reference_model(folder, tuple((rope | {"rope_theta": theta}).items()))
    expected = reference_logprobs(reference, tokens)[len(prompt) - 1 : -1]
    assert (torch.stack(found) - expected).abs().max() <= 2e-4


def _compare(folder: Path, *, reference_rope: dict[str, Any] | None, **flags: object) -> Any:
    runner = load_runner(folder, **flags)
    driver = StepDriver(runner)
    driver.start(0, PROMPT, full_logprobs(runner))
    driver.step(driver.chunk(0, 0, PROMPT[:100]))
    result = driver.step(driver.chunk(0, 100, PROMPT[100:], sample=True))
    model = reference_model(folder, tuple((reference_rope or {}).items()))
    expected = reference_logprobs(model, PROMPT)[-1]
    assert (distribution(result) - expected).abs().max() <= 1e-4
    return runner
