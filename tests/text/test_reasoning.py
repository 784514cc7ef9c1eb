"""The <think> block of Qwen3's answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.text.reasoning import ReasoningParser, Split, State, state_after_prompt
from tandem_runtime.text.tokenizer import Tokenizer


def split(pieces: list[str], state: State = "start") -> Split:
    parser = ReasoningParser(state)
    parts = [*map(parser.push, pieces), parser.flush()]
    return Split("".join(part.reasoning for part in parts), "".join(part.content for part in parts))


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>\nHm.\n\nYes.\n</think>\n\nParis.", "Hm.\n\nYes.", "Paris."),
        ("<think>\n\n</think>\n\nParis.", "", "Paris."),
        ("\n<think>Hm.</think>Paris.", "Hm.", "Paris."),
        ("Paris.", "", "Paris."),
        ("  Paris <think> not a block </think>", "", "  Paris <think> not a block </think>"),
        ("<thin air", "", "<thin air"),
        ("<think>a < b, </thi no</think>c</think>", "a < b, </thi no", "c</think>"),
        ("<think>unfinished\n", "unfinished", ""),
        ("<think>unfinished </th", "unfinished </th", ""),
        ("", "", ""),
        ("<th", "", "<th"),
    ],
)
def test_whole_and_character_by_character(text: str, reasoning: str, content: str) -> None:
    assert split([text]) == (reasoning, content)
    assert split(list(text)) == (reasoning, content)


@given(
    pieces=st.lists(st.sampled_from(["<", "think", ">", "</think>", "/", "\n", "a", "<think>"]), max_size=25),
    state=st.sampled_from(["start", "thinking", "answering"]),
)
def test_the_cut_does_not_matter(pieces: list[str], state: State) -> None:
    assert split(pieces, state) == split(["".join(pieces)], state) == split(list("".join(pieces)), state)


def test_a_block_opened_by_the_prompt() -> None:
    assert split(["Hm.", "</think>", "\n\nYes."], "thinking") == ("Hm.", "Yes.")


def test_tags_after_a_closed_block_are_text() -> None:
    assert split(["<think>x</think>"], "answering") == ("", "<think>x</think>")


def test_tokens_of_the_block_are_counted_with_its_tags() -> None:
    parser = ReasoningParser()
    for piece in ["<think>", "\n", "Hm", ".", "\n", "</think>", "\n\n", "Paris", "."]:
        parser.push(piece)
    assert parser.tokens == 6


def test_tokens_before_a_plain_answer_are_not_counted() -> None:
    parser = ReasoningParser()
    for piece in ["<", "th", "ree", " cheers"]:
        parser.push(piece)
    assert parser.tokens == 0


def test_tags_cut_over_tokens_are_counted_too() -> None:
    parser = ReasoningParser()
    for piece in ["<th", "ink>", "a", "</th", "ink>", "b"]:
        parser.push(piece)
    assert parser.tokens == 5


@pytest.mark.parametrize(
    ("content", "kwargs", "state"),
    [
        ("Hi", {}, "start"),
        ("Hi", {"enable_thinking": True}, "start"),
        ("Hi", {"enable_thinking": False}, "answering"),
        # The switches are for the model, which answers /no_think with an empty block: so both must parse from "start".
        ("Hi /no_think", {}, "start"),
        ("Hi /think", {}, "start"),
        ("Hi /no_think", {"enable_thinking": False}, "answering"),
        ("What does <think> mean? </think>", {}, "start"),
    ],
)
def test_where_qwen3_answers_begin(qwen3: Tokenizer, content: str, kwargs: dict[str, bool], state: str) -> None:
    assert qwen3.template is not None
    prompt = qwen3.template.render([{"role": "user", "content": content}], variables=kwargs)
    assert state_after_prompt(prompt) == state


def test_a_template_that_opens_the_block() -> None:
    assert state_after_prompt("<|im_start|>assistant\n<think>\n") == "thinking"


def test_an_answer_to_no_think_through_real_tokens(qwen3: Tokenizer) -> None:
    token_ids = qwen3.encode("<think>\n\n</think>\n\nParis.", add_special_tokens=False)
    detokenizer = qwen3.detokenizer()
    assert split([detokenizer.push(token_id) for token_id in token_ids]) == ("", "Paris.")
