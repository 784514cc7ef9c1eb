"""Whatever the protocol accepts and the model computes, the sampler answers with tokens of the vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.scripted_engine import ScriptedEngine
from tandem_runtime.core.errors import RequestError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.sampler import History, SampleRow, sample
from tandem_runtime.execution.sampling_math import draw
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.server.protocol.convert import to_engine_requests

VOCAB = 8
INFO = ScriptedEngine(vocab_size=VOCAB, eos_token_ids=(2,)).info


def accepted(fields: dict[str, Any]) -> SamplingParams:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    (request,) = to_engine_requests(
        parse(ChatRequest, body),
        [1, 2, 3],
        request_id="r",
        info=INFO,
        prompt_param="messages",
        max_tokens=8,
        seed=1,
        logprobs=1,
    )
    return request.sampling


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2) | st.sampled_from([1e-50, 1e-45, 1e-38, 1e-5]),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(-1, 2**31 - 1) | st.integers(-1, VOCAB),
        "min_p": st.floats(0, 1),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.01, 10),
        "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1).map(str), st.floats(-100, 100)),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "stop_token_ids": st.lists(st.integers(0, VOCAB - 1)),
        "min_tokens": st.integers(0, 8),
    },
)
LOGITS = st.lists(
    st.floats(-30, 30, width=32)
    | st.floats(width=32)
    | st.sampled_from([math.nan, math.inf, -math.inf, torch.finfo().max, torch.finfo().min]),
    min_size=VOCAB,
    max_size=VOCAB,
)


@given(
    st.lists(st.tuples(FIELDS, LOGITS), min_size=1, max_size=3),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@example([({"temperature": 1e-50}, [1.0, 2.0, *[0.0] * 6])], 0, torch.float32)
@example([({"temperature": 1.0}, [math.nan] * 8)], 0, torch.float16)
@example([({"temperature": 1.0, "top_p": 0.5}, [math.inf] * 8)], 0, torch.float16)
@example([({"min_p": 0.5, "top_k": 3}, [-math.inf] * 8)], 0, torch.float16)
def test_ids_are_of_the_vocabulary(
    rows: list[tuple[dict[str, Any], list[float]]], output_index: int, dtype: torch.dtype
) -> None:
    """`temperature: 1e-50` ended the engine: it is 0 in float32, so that logits over it were infinite and NaN, and the
    draw returned the size of the vocabulary, which has no embedding. Overflowing fp16 logits did the same."""
    chosen = [accepted(fields) for fields, _ in rows]
    logits_RV = torch.tensor([logits for _, logits in rows], dtype=dtype)
    ids_R, _ = sample(
        logits_RV,
        [
            SampleRow(one, output_index, History([1, 2], [2, 3], VOCAB, "cpu") if one.needs_history else None)
            for one in chosen
        ],
    )
    assert all(0 <= token < VOCAB for token in ids_R.tolist())


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-52])
@pytest.mark.parametrize(
    ("logits", "possible"),
    [
        ([0.0, math.nan, -math.inf, math.nan], {0}),
        ([0.0, math.inf, math.nan, -math.inf], {1}),
        ([-math.inf] * 4, {0, 1, 2, 3}),
        ([math.nan] * 4, {0, 1, 2, 3}),
    ],
)
def test_draw_prefers_numbers(logits: list[float], possible: set[int], uniform: float) -> None:
    (token,) = draw(torch.tensor([logits]), torch.tensor([uniform], dtype=torch.float64)).tolist()
    assert token in possible


@pytest.mark.parametrize("temperature", [0, 1e-320, 1e-50, 9e-6])
def test_a_temperature_next_to_nothing_is_greedy(temperature: float) -> None:
    assert accepted({"temperature": temperature}).greedy


@pytest.mark.parametrize("penalty", [0, 1e-300, 0.0099, 10.5])
def test_a_repetition_penalty_that_overflows_is_refused(penalty: float) -> None:
    """1e-300 is 0 in float32 and made the logits of the prompt's tokens infinite."""
    with pytest.raises(RequestError, match="repetition_penalty") as refusal:
        accepted({"repetition_penalty": penalty})
    assert refusal.value.param == "repetition_penalty"


def test_the_least_temperature_and_penalty_still_sample() -> None:
    sampling = accepted({"temperature": 1e-5, "repetition_penalty": 0.01})
    assert (sampling.greedy, sampling.temperature, sampling.repetition_penalty) == (False, 1e-5, 0.01)
