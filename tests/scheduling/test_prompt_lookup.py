"""Prompt lookup against its definition, token by token and in pieces."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.scheduling.prompt_lookup import MAX_CANDIDATES, PromptLookup


def lookup(tokens: list[int], shortest: int = 2, longest: int = 4) -> PromptLookup:
    found = PromptLookup(shortest=shortest, longest=longest)
    found.extend(tokens)
    return found


def by_definition(tokens: list[int], count: int, shortest: int, longest: int) -> list[int]:
    """The longest end of the tokens that occurs earlier, at its latest place, and what follows there."""
    for length in range(longest, shortest - 1, -1):
        end = tokens[len(tokens) - length :]
        for place in range(len(tokens) - 1, length - 1, -1):
            if length <= len(tokens) and tokens[place - length : place] == end:
                text = list(tokens)
                for i in range(count):
                    text.append(text[place + i])
                return text[len(tokens) :]
    return []


@given(
    tokens=st.lists(st.integers(0, 2), max_size=MAX_CANDIDATES),
    cuts=st.sets(st.integers(0, MAX_CANDIDATES)),
    count=st.integers(1, 6),
    shortest=st.integers(1, 3),
    more=st.integers(0, 3),
)
def test_what_followed_the_longest_match_the_last_time(
    tokens: list[int], cuts: set[int], count: int, shortest: int, more: int
) -> None:
    found = PromptLookup(shortest=shortest, longest=shortest + more)
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(tokens)], strict=True):
        found.extend(tokens[begin:end])
        assert found.propose(count) == by_definition(tokens[: len(found)], count, shortest, shortest + more)
    assert len(found) == len(tokens)


def test_the_longer_match_wins_over_the_later_one() -> None:
    assert lookup([1, 2, 3, 40, 2, 3, 50, 1, 2, 3]).propose(1) == [40]
    assert lookup([1, 2, 3, 40, 2, 3, 50, 1, 2, 3], longest=2).propose(1) == [50]


def test_of_equal_matches_the_latest_wins() -> None:
    assert lookup([7, 8, 1, 9, 7, 8, 2, 9, 7, 8]).propose(2) == [2, 9]


def test_nothing_is_guessed_without_a_match() -> None:
    assert lookup([]).propose(3) == lookup([1]).propose(3) == lookup([1, 2, 3, 4]).propose(3) == []


def test_a_loop_goes_on() -> None:
    assert lookup([5, 1, 2, 1, 2]).propose(5) == [1, 2, 1, 2, 1]


def test_a_context_of_the_worst_kind_takes_bounded_time() -> None:
    """One run of tokens at every place: each proposal would compare them all."""
    began = time.process_time()
    worst = lookup([9] * 100_000 + [8, 7, 6, 9, 9], longest=10)
    for _ in range(1000):
        assert worst.propose(4) == [8, 7, 6, 9]
    assert time.process_time() - began < 5
