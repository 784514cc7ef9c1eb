"""A model of random logits samples whatever is allowed, and nothing may come of it but what was asked for."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from support.json_schemas import json_schemas
from support.tiny_models import EOS_TOKEN_ID, VOCAB_SIZE
from tandem_runtime.core.sampling import SamplingParams, Thinking
from tandem_runtime.grammar import sources
from tandem_runtime.grammar.compiler import GrammarCompiler
from tandem_runtime.grammar.constraint import Constraint, Mask, new_masks
from tandem_runtime.text.vocabulary import Vocabulary

OPEN, CLOSE = 256, 257
"""Two special tokens stand for the tags: what matters to a constraint is that they are single ids."""
BREAK, X, Y, N = 198, 87, 88, 77
"""Line break, x, y and n in the byte vocabulary."""
ENOUGH = 3000


def params(part: sources.Part | None, thinking: Thinking | None = None, **more: Any) -> SamplingParams:
    return SamplingParams(
        max_tokens=ENOUGH,
        stop_token_ids=(EOS_TOKEN_ID,),
        grammar="" if part is None else sources.combine(part),
        thinking=thinking,
        **more,
    )


def constraint_of(compiler: GrammarCompiler, sampling: SamplingParams) -> Constraint:
    return Constraint(sampling, compiler.compile(sampling.grammar) if sampling.grammar else None)


def filled(constraint: Constraint) -> Mask | None:
    """None when anything may come, or nothing can any more."""
    [mask] = new_masks(1, VOCAB_SIZE)
    if (matcher := constraint.asks) is not None:
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    return mask if constraint.complete(mask) else None


def allowed(constraint: Constraint) -> list[int]:
    mask = filled(constraint)
    if mask is None:
        assert constraint.failure is None, constraint.failure
        return list(range(VOCAB_SIZE))
    return [token for token in range(VOCAB_SIZE) if mask[token >> 3] >> (token & 7) & 1]


def walk(constraint: Constraint, seed: int, *, until: int = ENOUGH) -> list[int]:
    """Tokens at random, with the end token that ends the answer."""
    rng = random.Random(seed)
    tokens: list[int] = []
    while EOS_TOKEN_ID not in tokens:
        assert len(tokens) < until, f"no end: {tokens}"
        tokens.append(rng.choice(allowed(constraint)))
        constraint.advance(tokens[-1])
    return tokens


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=json_schemas, seed=st.integers(0, 1000))
@example(schema={"type": "object", "properties": {"a": {"const": "</think>"}}, "required": ["a"]}, seed=1)
def test_noise_validates_against_any_schema(
    compiler: GrammarCompiler, text_of: Callable[[list[int]], str], schema: Any, seed: int
) -> None:
    constraint = constraint_of(compiler, params(sources.of_json_schema(schema, strict=True)))
    jsonschema.validate(json.loads(text_of(walk(constraint, seed))), schema)


@pytest.mark.parametrize("seed", range(20))
def test_regex_choice_and_grammar(compiler: GrammarCompiler, text_of: Callable[[list[int]], str], seed: int) -> None:
    def said(part: sources.Part) -> str:
        return text_of(walk(constraint_of(compiler, params(part)), seed))

    assert re.fullmatch(r"[a-z]{2,5}/\d+\$", said(sources.of_regex(r"^[a-z]{2,5}/[0-9]{1,9}\$$")))
    assert said(sources.of_choices(["yes", 'a "no"', "<|im_end|>"])) in {"yes", 'a "no"', "<|im_end|>"}
    assert re.fullmatch("(ab)+", said(sources.of_grammar('root ::= "ab" root | "ab"')))
    assert re.fullmatch("(ab)+", said(sources.of_grammar('start: "ab"+')))
    either = sources.combine(sources.of_regex("[0-9]{3}"), sources.of_choices(["none"]))
    sampling = SamplingParams(max_tokens=9, stop_token_ids=(EOS_TOKEN_ID,), grammar=either)
    assert re.fullmatch("[0-9]{3}|none", text_of(walk(constraint_of(compiler, sampling), seed)))


_CHARACTERS = st.characters(codec="utf-8") | st.sampled_from(['"', "\\", "\n", "a", "b", "\u00e9", "\u00e8"])
_CHOICE = st.text(_CHARACTERS, min_size=1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.lists(_CHOICE, min_size=1, max_size=8), data=st.data())
@example(choices=["a", "ab", "abc", "abd", "b"], data=None)
@example(choices=['say "no"', "two\nlines", "\U0001f600", "\U0001f601", "\x7f\x00", "(?i)a|b", "|", "/a/"], data=None)
@example(choices=["x" * 700, "x" * 699 + "y"], data=None)
def test_an_answer_is_one_of_the_choices_and_each_of_them_can_be(
    compiler: GrammarCompiler, text_of: Callable[[list[int]], str], choices: list[str], data: st.DataObject | None
) -> None:
    tokenizer = LLTokenizer("byte")
    beginning = LLMatcher(tokenizer, sources.combine(sources.of_choices(choices)))

    def accepts(text: str) -> bool:
        matcher, tokens = beginning.deep_copy(), list(text.encode())
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    others = {choice[:-1] for choice in choices} | {choice + "a" for choice in choices} | {choices[0] + choices[-1]}
    if data is not None:
        others |= {data.draw(_CHOICE), data.draw(st.sampled_from(choices)) + data.draw(_CHOICE)}
    for text in {*choices, *others}:
        assert accepts(text) == (text in choices), text
    for seed in range(3):
        constraint = constraint_of(compiler, params(sources.of_choices(choices)))
        assert text_of(walk(constraint, seed)) in choices


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        (r"\d", "7", "\u0667"), (r"[\d.]", ".", "\u0667"), (r"\w", "_", "\u00e9"), (r"\s", "\t", "\u2003"),
        (r"\D", "\u0667", "7"), (r"[^\d]", "\u0667", "7"), (r"\\d", r"\d", "7"),
    ],
)  # fmt: skip
def test_classes_are_ascii(pattern: str, fits: str, fits_not: str) -> None:
    tokenizer = LLTokenizer("byte")
    for text, wanted in ((fits, True), (fits_not, False)):
        matcher = LLMatcher(tokenizer, sources.combine(sources.of_regex(pattern)))
        tokens = list(text.encode())
        assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) is wanted


def test_after_the_end_only_end_tokens_come(compiler: GrammarCompiler) -> None:
    """With `ignore_eos` a sequence goes on after its grammar has ended."""
    constraint = constraint_of(compiler, params(sources.of_choices(["a"])))
    walk(constraint, 0)
    for _ in range(3):
        assert allowed(constraint) == [EOS_TOKEN_ID]
        constraint.advance(EOS_TOKEN_ID)


def thinking(**more: Any) -> Thinking:
    return Thinking(open_id=OPEN, close_id=CLOSE, break_ids=(BREAK,), **more)


@pytest.mark.parametrize("seed", range(30))
def test_a_grammar_begins_after_the_thought(
    compiler: GrammarCompiler, text_of: Callable[[list[int]], str], seed: int
) -> None:
    """In other servers JSON mode and thinking exclude each other: the grammar forbids the thought, or is ignored."""
    constraint = constraint_of(compiler, params(sources.of_choices(["yes", "no"]), thinking(budget=40)))
    first = allowed(constraint)
    assert set(first) == {OPEN, Y, N}
    constraint.advance(OPEN)
    tokens = walk(constraint, seed)
    thought, answer = tokens[: tokens.index(CLOSE)], tokens[tokens.index(CLOSE) + 1 :]
    assert len(thought) <= 40
    assert text_of(answer).lstrip("\n") in ("yes", "no")
    assert EOS_TOKEN_ID not in thought


@pytest.mark.parametrize("budget", [0, 1, 7])
@pytest.mark.parametrize("begun", [True, False])
def test_the_budget_closes_the_thought(budget: int, begun: bool) -> None:
    constraint = Constraint(params(None, thinking(budget=budget, begun=begun)), None)
    if not begun:
        assert len(allowed(constraint)) == VOCAB_SIZE
        constraint.advance(BREAK)  # Some models begin with a line break.
        constraint.advance(OPEN)
    for _ in range(budget):
        assert len(allowed(constraint)) == VOCAB_SIZE
        constraint.advance(X)
    for forced in (CLOSE, BREAK):
        assert allowed(constraint) == [forced]
        constraint.advance(forced)
    assert len(allowed(constraint)) == VOCAB_SIZE


def test_a_thought_within_its_budget_is_left_alone() -> None:
    constraint = Constraint(params(None, thinking(budget=5, begun=True)), None)
    for token in [X] * 4 + [CLOSE] + [X] * 12:
        assert len(allowed(constraint)) == VOCAB_SIZE
        constraint.advance(token)


def test_an_answer_without_a_thought_has_no_budget() -> None:
    constraint = Constraint(params(None, thinking(budget=2)), None)
    for token in [X] * 4 + [OPEN] + [X] * 12:
        assert len(allowed(constraint)) == VOCAB_SIZE
        constraint.advance(token)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=json_schemas, seed=st.integers(0, 1000), begun=st.booleans())
def test_a_constraint_is_rebuilt_from_the_tokens_so_far(
    compiler: GrammarCompiler, schema: Any, seed: int, begun: bool
) -> None:
    """After a preemption, and on another pod, there is nothing else to begin from."""
    sampling = params(sources.of_json_schema(schema, strict=True), thinking(budget=9, begun=begun))
    tokens = walk(constraint_of(compiler, sampling), seed)
    through = constraint_of(compiler, sampling)
    for count, token in enumerate(tokens[:60]):
        rebuilt = constraint_of(compiler, sampling)
        for earlier in tokens[:count]:
            rebuilt.advance(earlier)
        assert allowed(rebuilt) == allowed(through)
        through.advance(token)


def test_a_token_that_does_not_fit_is_a_failure_not_a_crash(compiler: GrammarCompiler) -> None:
    constraint = constraint_of(compiler, params(sources.of_choices(["yes"])))
    constraint.advance(N)
    assert filled(constraint) is None
    assert constraint.failure is not None
    assert "too complex" in constraint.failure


def test_the_byte_vocabulary(vocabulary: Vocabulary) -> None:
    assert [vocabulary.tokens[token] for token in (BREAK, X, Y, N)] == [b"\n", b"x", b"y", b"n"]
