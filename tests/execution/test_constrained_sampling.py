"""Constraints in the runner hold for their own row, at any chunking, after a preemption, and touch no other row."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec.structs import replace
from support.step_driver import StepDriver, tiny_execution_config
from support.tiny_models import EOS_TOKEN_ID
from tandem_runtime.core.errors import RequestError
from tandem_runtime.core.sampling import SamplingParams, Thinking
from tandem_runtime.engine.constraints import Constraining
from tandem_runtime.engine.messages import EngineRequest
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.grammar import sources
from tandem_runtime.text.tokenizer import Tokenizer

PROMPT = [(7 * i * i + 3 * i) % 256 for i in range(19)]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "flags"],
    "additionalProperties": False,
}
GRAMMAR = sources.combine(sources.of_json_schema(SCHEMA, strict=True))
YES_OR_NO = sources.combine(sources.of_choices(["yes", "no"]))
YES_TWICE = sources.combine(sources.of_choices(["yes", "yes, no"]))
STEPS = 300


@pytest.fixture(scope="module")
def folder(tiny: Callable[..., Path]) -> Path:
    return tiny("llama")


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[ModelRunner]:
    config = tiny_execution_config(folder)
    inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    constraining = Constraining(config, inbox.put)
    admitted: list[str] = []
    for grammar in (GRAMMAR, YES_OR_NO, YES_TWICE):
        request = EngineRequest(request_id=grammar, prompt_token_ids=[1], sampling=sampling(0, grammar=grammar))
        constraining.gate.enter(
            request, 0.0, room=3, admit=lambda request, _: admitted.append(request.request_id), refuse=_refused
        )
        inbox.get(timeout=20)()
    assert admitted == [GRAMMAR, YES_OR_NO, YES_TWICE]
    runner = ModelRunner(config, constraints=constraining.table)
    runner.load()
    yield runner
    constraining.close()


def _refused(request: EngineRequest, error: RequestError) -> None:
    raise error


def sampling(seed: int, **more: Any) -> SamplingParams:
    defaults: dict[str, Any] = {"max_tokens": 1 << 20, "seed": seed, "stop_token_ids": (EOS_TOKEN_ID,)}
    return SamplingParams(**(defaults | more))


def answer(
    runner: ModelRunner, params: SamplingParams, *, splits: tuple[int, ...] = (), steps: int = STEPS
) -> list[int]:
    driver = StepDriver(runner)
    driver.start(0, PROMPT, params)
    tokens = [driver.prefill(0, PROMPT, splits=splits)]
    while tokens[-1] != EOS_TOKEN_ID and len(tokens) < steps:
        tokens += driver.decode({0: len(PROMPT) + len(tokens) - 1}, 1)[0]
    return tokens


@pytest.mark.parametrize("seed", range(4))
def test_the_answer_validates_at_any_chunking(runner: ModelRunner, folder: Path, seed: int) -> None:
    tokens = answer(runner, sampling(seed, grammar=GRAMMAR))
    assert tokens[-1] == EOS_TOKEN_ID
    jsonschema.validate(json.loads(Tokenizer(str(folder)).decode(tokens[:-1])), SCHEMA)
    assert answer(runner, sampling(seed, grammar=GRAMMAR), splits=(3, 8, 17)) == tokens


def test_an_answer_that_begins_beside_guesses(runner: ModelRunner) -> None:
    """A step's result has several tokens for a sequence with drafts; the grammar once followed one of those."""
    params = sampling(3, grammar=GRAMMAR)
    driver = StepDriver(runner)
    driver.start(1, PROMPT)
    newest = driver.prefill(1, PROMPT)
    guesses = driver.chunk(1, len(PROMPT), [newest, (newest + 1) % 256, 2, 3], sample=True)
    driver.start(0, PROMPT, params)
    result = driver.step(replace(guesses, num_drafts=3), driver.chunk(0, 0, PROMPT, sample=True))
    tokens = result.token_ids[4:]
    while tokens[-1] != EOS_TOKEN_ID:
        tokens += driver.decode({0: len(PROMPT) + len(tokens) - 1}, 1)[0]
    assert tokens == answer(runner, params)


@pytest.mark.parametrize("output_so_far", [1, 5, 20])
def test_a_preempted_answer_goes_on_where_it_was(runner: ModelRunner, output_so_far: int) -> None:
    params = sampling(3, grammar=GRAMMAR)
    whole = answer(runner, params)
    driver = StepDriver(runner)
    known = PROMPT + whole[:output_so_far]
    driver.start(0, PROMPT, params, output=whole[:output_so_far])
    resumed = [driver.prefill(0, known)]
    resumed += driver.decode({0: len(known)}, len(whole) - output_so_far - 1)[0]
    assert whole[:output_so_far] + resumed == whole


def test_rows_beside_a_constrained_one_are_as_without_it(runner: ModelRunner) -> None:
    free = [sampling(1), sampling(2, temperature=0.0), sampling(4, presence_penalty=0.5, top_p=0.9)]
    alone = [answer(runner, params, steps=20) for params in free]
    driver = StepDriver(runner)
    sequences = [free[0], sampling(3, grammar=GRAMMAR), *free[1:]]
    beside = []
    for slot, params in enumerate(sequences):
        driver.start(slot, PROMPT, params)
        beside.append([driver.prefill(slot, PROMPT)])
    found = driver.decode({slot: len(PROMPT) for slot in range(len(sequences))}, 19)
    beside = [tokens + found[slot] for slot, tokens in enumerate(beside)]
    for expected, got in zip(alone, [beside[0], *beside[2:]], strict=True):
        assert got[: len(expected)] == expected


def test_logprobs_are_those_of_what_may_come(runner: ModelRunner) -> None:
    driver = StepDriver(runner)
    driver.start(0, PROMPT, sampling(0, grammar=YES_OR_NO, temperature=0.0, logprobs=3))
    result = driver.step(driver.chunk(0, 0, PROMPT, sample=True))
    [first, second, third] = [value for _, value in result.logprobs[0].top]
    assert first > second > -20
    assert third == float("-inf")


def test_min_tokens_does_not_break_a_grammar(runner: ModelRunner, folder: Path) -> None:
    params = sampling(0, grammar=YES_TWICE, min_tokens=12)
    tokens = answer(runner, params, steps=12)
    text = Tokenizer(str(folder)).decode([token for token in tokens if token != EOS_TOKEN_ID])
    assert text == "yes, no"  # "yes" may not end yet


def test_a_budget_without_a_grammar(runner: ModelRunner) -> None:
    thinking = Thinking(open_id=256, close_id=257, break_ids=(198,), begun=True, budget=6)
    tokens = answer(runner, sampling(5, thinking=thinking, stop_token_ids=()), steps=30)
    assert tokens[6:8] == [257, 198]
    unlimited = answer(runner, sampling(5, stop_token_ids=()), steps=30)
    assert tokens[:6] == unlimited[:6]


def test_a_failure_ends_its_own_row_only(runner: ModelRunner) -> None:
    """The tokens so far do not follow the grammar: as if llguidance had given up in the midst of an answer."""
    driver = StepDriver(runner)
    driver.start(0, PROMPT, sampling(0, grammar=GRAMMAR), output=[5])
    driver.start(1, PROMPT, sampling(0, grammar=GRAMMAR))
    known = [*PROMPT, 5]
    result = driver.step(driver.chunk(0, 0, known, sample=True), driver.chunk(1, 0, PROMPT, sample=True))
    assert list(result.failures) == [0]
    after = driver.step(driver.chunk(0, len(known), None, sample=True), driver.chunk(1, len(PROMPT), None, sample=True))
    assert list(after.failures) == [0]
