"""Prompts of exact token lengths, fresh for every request so that no prefix cache helps unasked."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tandem_runtime.bench.errors import PromptNotBuildable

Prompt = list[int] | str
CountTokens = Callable[[str], Awaitable[int]]
"""Tokens the server will see for a text, template and special tokens included."""

_FILLERS = (" a", " the", ".", ",", "!")
"""Mostly a token each; a choice of them, so that one which is two tokens cannot stall the search."""
_SYLLABLES = tuple(consonant + vowel for consonant in "bdfghklmnprstvw" for vowel in "aeiou")
_MAX_ROUNDS = 32


@dataclass(frozen=True, slots=True)
class Workload:
    input_len: int
    output_len: int

    def __str__(self) -> str:
        return f"{self.input_len}:{self.output_len}"


def parse_workload(text: str) -> Workload:
    """`INPUT:OUTPUT` in tokens. Raises `ValueError`."""
    input_len, colon, output_len = text.partition(":")
    if not colon or not input_len.isdecimal() or not output_len.isdecimal():
        raise ValueError(f"{text!r} is not INPUT:OUTPUT, such as 3500:1500")
    if int(input_len) < 1 or int(output_len) < 1:
        raise ValueError(f"{text!r}: both lengths must be at least 1")
    return Workload(int(input_len), int(output_len))


class PromptSource(Protocol):
    async def prompt(self, rng: random.Random, length: int) -> Prompt:
        """A prompt of exactly `length` tokens. Raises `PromptNotBuildable`."""


class TokenIdPrompts:
    """Random token ids; exact without any tokenizer, but only `/v1/completions` takes them."""

    def __init__(self, ids: range, *, shared_prefix: list[int]) -> None:
        self._ids = ids
        self._shared_prefix = shared_prefix

    async def prompt(self, rng: random.Random, length: int) -> Prompt:
        return self._shared_prefix + rng.choices(self._ids, k=length - len(self._shared_prefix))


class TextPrompts:
    """Random words, trimmed and filled until `count` says that the length is right."""

    def __init__(self, count: CountTokens, *, shared_prefix: str = "") -> None:
        self._count = count
        self._shared_prefix = shared_prefix

    async def prompt(self, rng: random.Random, length: int) -> Prompt:
        return await self.text(rng, length)

    async def text(self, rng: random.Random, length: int) -> str:
        overhead = await self._count(self._shared_prefix)
        words: list[str] = []
        per_word = 1.0
        counted = overhead
        for _ in range(_MAX_ROUNDS):
            missing = length - counted
            if missing == 0:
                return self._shared_prefix + "".join(words)
            if missing < 0:
                del words[-max(1, round(-missing / per_word)) :]
            elif missing <= 2 * per_word + 2:
                words += rng.choices(_FILLERS, k=missing)
            else:
                words += [_word(rng) for _ in range(int(missing / per_word))]
            counted = await self._count(self._shared_prefix + "".join(words))
            per_word = max(1.0, (counted - overhead) / max(1, len(words)))
        raise PromptNotBuildable(
            f"found no text of exactly {length} tokens (came to {counted}); the empty prompt has {overhead}"
        )


def _word(rng: random.Random) -> str:
    return " " + "".join(rng.choices(_SYLLABLES, k=2))
