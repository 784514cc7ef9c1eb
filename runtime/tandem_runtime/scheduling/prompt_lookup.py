"""Prompt lookup: how one sequence went on the last time it read as it does now (n-gram speculative decoding).

Answers that repeat parts of their prompt, or of themselves, are guessed at no cost (github.com/apoorvumang/
prompt-lookup-decoding; vLLM's `ngram` method).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Tokens

MAX_CANDIDATES = 64
"""Earlier places that are compared for the longest match, latest first; so one proposal takes bounded time."""


class PromptLookup:
    """Knows the places of every run of `shortest` tokens: one dictionary entry for each token, made when it comes."""

    def __init__(self, *, shortest: int, longest: int) -> None:
        """At least `shortest` tokens must read the same; no more than `longest` are compared."""
        self._shortest = shortest
        self._longest = longest
        self._tokens = array("I")
        self._latest: dict[tuple[int, ...], int] = {}
        """By run of tokens: the index of what followed it last."""
        self._earlier = array("i")
        """By index of a token: the index of what followed the same run before that, or -1."""

    def __len__(self) -> int:
        """Tokens taken so far."""
        return len(self._tokens)

    def extend(self, token_ids: Tokens[int]) -> None:
        tokens, latest, shortest = self._tokens, self._latest, self._shortest
        begin = len(tokens)
        tokens.extend(token_ids)
        for index in range(begin, len(tokens)):
            if index < shortest:
                self._earlier.append(-1)
                continue
            run = tuple(tokens[index - shortest : index])
            self._earlier.append(latest.get(run, -1))
            latest[run] = index

    def propose(self, count: int) -> list[int]:
        """Up to `count` tokens: what followed the longest match, of several the latest; nothing without a match."""
        found = self._find()
        if found is None:
            return []
        guess = self._tokens[found : found + count].tolist()
        # A match that overlaps the end goes round: the text repeats with that period.
        period = len(self._tokens) - found
        while len(guess) < count:
            guess.append(guess[len(guess) - period])
        return guess

    def _find(self) -> int | None:
        end = len(self._tokens)
        if end < self._shortest:
            return None
        best, best_length = None, 0
        place = self._latest.get(tuple(self._tokens[end - self._shortest :]), -1)
        for _ in range(MAX_CANDIDATES):
            if place < 0 or best_length == self._longest:
                break
            length = self._match(place, end)
            if length > best_length:
                best, best_length = place, length
            place = self._earlier[place]
        return best

    def _match(self, place: int, end: int) -> int:
        """How many tokens before both indices are the same; the first `shortest` are known to be."""
        length = self._shortest
        while length < min(self._longest, place) and self._tokens[place - length - 1] == self._tokens[end - length - 1]:
            length += 1
        return length
