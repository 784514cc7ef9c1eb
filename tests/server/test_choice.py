"""One choice, from engine outputs to text, without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.core.sampling import TokenLogprobs
from tandem_runtime.engine.messages import EngineOutput
from tandem_runtime.server.choice import Choice, Delta
from tandem_runtime.text.detokenize import IncrementalDetokenizer, TokenBytes
from tandem_runtime.text.reasoning import ReasoningParser

PIECES = ["a", "b", " ", "\n", "ab", "<think>", "</think>", "EOS"]
TABLE = TokenBytes(PIECES.__getitem__, str.encode)
EOS = 7


def outputs(token_ids: list[int], *, sizes: list[int] | None = None, finish: str = "length") -> list[EngineOutput]:
    cuts = sizes or [1] * len(token_ids)
    news, position = [], 0
    for size in cuts:
        part = token_ids[position : position + size]
        position += size
        last = position >= len(token_ids)
        news.append(
            EngineOutput(
                request_id="r",
                token_ids=part,
                logprobs=[TokenLogprobs(token_id, -1.0, 1, []) for token_id in part],
                finish_reason=finish if last else None,  # type: ignore[arg-type]
                stop_token_id=part[-1] if last and finish == "stop" else None,
            )
        )
        if last:
            break
    return news


def run(choice: Choice, news: list[EngineOutput]) -> Delta:
    total = Delta()
    for output in news:
        delta = choice.accept(output)
        total.reasoning += delta.reasoning
        total.say(delta.content)
        total.scored += delta.scored
        total.finish = delta.finish
        # Logprobs never run ahead of the text they belong to.
        assert all(scored.offset <= len(total.content) for scored in total.scored)
        if delta.finish:
            break
    return total


def text_of(delta: Delta) -> str:
    return "".join(PIECES[scored.logprobs.token_id] for scored in delta.scored)


@given(
    token_ids=st.lists(st.integers(0, 6), min_size=1, max_size=20),
    stops=st.lists(st.sampled_from(["ab", "b a", "\n\n", "aab"]), max_size=2),
    size=st.integers(1, 4),
    thinks=st.booleans(),
)
def test_batches_of_tokens_change_nothing(token_ids: list[int], stops: list[str], size: int, thinks: bool) -> None:
    """Same text, counts and logprobs however many tokens the engine reports at a time."""
    results = []
    for sizes in ([1] * len(token_ids), [size] * len(token_ids)):
        choice = Choice(0, IncrementalDetokenizer(TABLE), stops=stops, reasoning=ReasoningParser() if thinks else None)
        total = run(choice, outputs(token_ids, sizes=sizes))
        results.append((total, choice.completion_tokens, choice.reasoning_tokens))
    assert results[0] == results[1]


def test_a_stop_token_leaves_no_text_but_counts() -> None:
    choice = Choice(0, IncrementalDetokenizer(TABLE))
    total = run(choice, outputs([0, 1, EOS], finish="stop"))
    assert (total.content, total.finish, choice.completion_tokens) == ("ab", "stop", 3)
    assert text_of(total) == "ab"


def test_logprobs_of_text_cut_by_a_stop_string_are_dropped() -> None:
    choice = Choice(0, IncrementalDetokenizer(TABLE), stops=[" a"])
    total = run(choice, outputs([0, 1, 2, 0, 1]))
    assert (total.content, total.finish, text_of(total)) == ("ab", "stop", "ab")
    assert choice.completion_tokens == 4


def test_held_back_text_comes_at_the_end() -> None:
    choice = Choice(0, IncrementalDetokenizer(TABLE), stops=["b b"])
    news = outputs([0, 1, 2])
    assert [choice.accept(output).content for output in news] == ["a", "", "b "]


def test_stop_strings_do_not_end_a_thought() -> None:
    choice = Choice(0, IncrementalDetokenizer(TABLE), stops=["ab"], reasoning=ReasoningParser())
    total = run(choice, outputs([5, 4, 6, 0, 2, 4, 0]))
    assert (total.reasoning, total.content, total.finish) == ("ab", "a ", "stop")


def test_stop_strings_wait_for_min_tokens() -> None:
    choice = Choice(0, IncrementalDetokenizer(TABLE), stops=["a"], min_tokens=2)
    total = run(choice, outputs([0, 0, 1, 0, 1]))
    assert (total.content, total.finish) == ("aab", "stop")


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_no_tokens_wanted(finish: str) -> None:
    choice = Choice(0, IncrementalDetokenizer(TABLE), max_tokens=0)
    total = run(choice, outputs([0], finish=finish))
    assert (total.content, total.finish, choice.completion_tokens) == ("", "length", 0)
