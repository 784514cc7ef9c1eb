"""With guesses and without, the same answers to the last bit: real models, every kind of sampling, bf16 as served."""

from __future__ import annotations

import random
from collections.abc import Sequence as Tokens
from pathlib import Path

import pytest
import torch
from support.offline import Answer, Request, answer_all
from support.step_driver import load_runner
from support.tiny_models import EOS_TOKEN_ID, Family, build_tiny_model
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.scheduling import Sequence, SpeculationConfig

VOCABULARY = 256
SHARED = [(13 * i * i + 5 * i) % VOCABULARY for i in range(21)]
FEW = dict.fromkeys((7, 11, 13), 60.0)
"""A bias that leaves three tokens: seeded texts then repeat themselves, too."""
SAMPLING: dict[str, SamplingParams] = {
    "greedy": SamplingParams(max_tokens=60, temperature=0.0),
    "greedy, logprobs": SamplingParams(max_tokens=40, temperature=0.0, logprobs=3),
    "seeded": SamplingParams(max_tokens=45, seed=5),
    "seeded, few tokens": SamplingParams(max_tokens=60, seed=6, temperature=0.3, logit_bias=FEW, logprobs=0),
    "truncated": SamplingParams(max_tokens=50, seed=7, temperature=0.7, top_p=0.9, top_k=20, min_p=0.02),
    "penalties, greedy": SamplingParams(
        max_tokens=50, temperature=0.0, repetition_penalty=1.05, frequency_penalty=0.02, logprobs=3
    ),
    "penalties, seeded": SamplingParams(
        max_tokens=60,
        seed=8,
        temperature=0.4,
        presence_penalty=0.3,
        frequency_penalty=0.02,
        repetition_penalty=1.1,
        logit_bias=FEW,
    ),
    "stop token": SamplingParams(
        max_tokens=60, seed=9, logit_bias=FEW | {EOS_TOKEN_ID: 57.0}, stop_token_ids=(EOS_TOKEN_ID,)
    ),
    "min tokens": SamplingParams(
        max_tokens=60, seed=10, logit_bias=FEW | {EOS_TOKEN_ID: 61.0}, min_tokens=25, stop_token_ids=(EOS_TOKEN_ID, 13)
    ),
    "two tokens": SamplingParams(max_tokens=2, temperature=0.0),
    "one token": SamplingParams(max_tokens=1, temperature=0.0),
    "until the context ends": SamplingParams(max_tokens=1 << 20, temperature=0.0),
}


@pytest.fixture(scope="module", params=["llama", "qwen3_moe"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    torch.set_num_threads(1)
    family: Family = request.param
    # Wide enough that oneDNN and the kernels take the paths of real models.
    folder: Path = build_tiny_model(
        tmp_path_factory.mktemp(family), family, hidden_size=264, intermediate_size=1100, head_dim=32
    )
    return load_runner(folder, backend="native", dtype="bfloat16", max_model_len=160)


def requests(rng: random.Random) -> list[Request]:
    """Of every kind, some of them twice (a prefix hit), some taken over from another pod, arriving bit by bit."""
    made = []
    for number, sampling in enumerate([*SAMPLING.values(), *SAMPLING.values()]):
        prompt = SHARED[: rng.randrange(22)] + [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 40))]
        again = SHARED + made[number - 4].prompt if number % 3 == 2 else prompt
        output = [7, 11, 7] if sampling.max_tokens > 10 and number % 5 == 1 else []
        made.append(Request(again, sampling, output=output, after_turn=8 * number))
    return made


class Oracle:
    """Guesses from the answers that are expected, wrong from some place on, each time another one."""

    def __init__(self, request: Request, answer: Answer) -> None:
        self._text = request.prompt + request.output + answer.token_ids
        self._known = 0

    def __len__(self) -> int:
        return self._known

    def extend(self, token_ids: Tokens[int]) -> None:
        self._known += len(token_ids)

    def propose(self, count: int) -> list[int]:
        guess = (self._text[self._known : self._known + count] + [3] * count)[:count]
        right = self._known * 11 % (count + 2)
        return guess[:right] + [(token + 1) % VOCABULARY for token in guess[right:]]


def lookup(num_tokens: int, max_batch: int) -> SpeculationConfig:
    return SpeculationConfig(num_tokens=num_tokens, lookup_min=1, lookup_max=3, max_batch=max_batch)


@pytest.mark.parametrize(
    ("guesses", "max_batch", "num_pages"),
    [("oracle", 8, None), ("oracle", 8, 45), ("oracle", 4, 45), ("lookup", 8, 45)],
    ids=["oracle", "preemptions", "small batches", "lookup"],
)
def test_every_answer_is_what_it_is_without_guesses(
    runner: ModelRunner, guesses: str, max_batch: int, num_pages: int | None
) -> None:
    asked = requests(random.Random(max_batch))
    expected, before = answer_all(runner, asked, num_pages=num_pages)

    def oracle(seq: Sequence) -> Oracle:
        index = int(seq.request_id)
        return Oracle(asked[index], expected[index])

    found, counters = answer_all(
        runner,
        asked,
        speculation=lookup(4, max_batch),
        new_proposer=oracle if guesses == "oracle" else None,
        num_pages=num_pages,
    )
    for answer, without, request in zip(found, expected, asked, strict=True):
        assert answer == without, request.sampling
    assert {answer.finish_reason for answer in found} == {"stop", "length"}
    assert (100 if guesses == "oracle" else 20) < counters.accepted_tokens < counters.draft_tokens
    assert counters.generation_tokens == before.generation_tokens
    assert counters.prefix_hit_tokens > 0
    assert (counters.preemptions > 0) == (num_pages is not None)
