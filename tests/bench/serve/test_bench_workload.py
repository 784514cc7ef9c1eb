from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tandem_runtime.bench.errors import PromptNotBuildable
from tandem_runtime.bench.serve.workload import TextPrompts, TokenIdPrompts, Workload, parse_workload


def test_workload_text() -> None:
    assert parse_workload("3500:1500") == Workload(3500, 1500)
    assert str(Workload(128, 64)) == "128:64"


@pytest.mark.parametrize("text", ["3500", "3500:", ":1", "0:4", "4:0", "a:b", "1:2:3", "-1:2"])
def test_bad_workloads_are_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_workload(text)


async def test_token_ids_stay_in_range_and_keep_the_prefix() -> None:
    source = TokenIdPrompts(range(5, 9), shared_prefix=[1, 2])
    prompt = await source.prompt(random.Random(0), 50)
    assert isinstance(prompt, list)
    assert prompt[:2] == [1, 2]
    assert len(prompt) == 50
    assert set(prompt[2:]) <= {5, 6, 7, 8}


@settings(deadline=None, max_examples=50)
@given(length=st.integers(8, 600), letters=st.integers(1, 9), overhead=st.integers(0, 7), seed=st.integers())
async def test_text_has_the_exact_length_for_any_tokenizer(length: int, letters: int, overhead: int, seed: int) -> None:
    async def count(text: str) -> int:
        return overhead + sum(-(-len(word) // letters) for word in text.split())

    prompt = await TextPrompts(count).text(random.Random(seed), length)
    assert await count(prompt) == length


async def test_impossible_length_says_what_the_least_is() -> None:
    async def count(text: str) -> int:
        return 30 + len(text.split())

    with pytest.raises(PromptNotBuildable, match=r"exactly 20 tokens.*the empty prompt has 30"):
        await TextPrompts(count).text(random.Random(0), 20)
