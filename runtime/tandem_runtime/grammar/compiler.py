"""Grammar text to llguidance matchers, within bounds of time and memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum
from functools import lru_cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from tandem_runtime.core.errors import GrammarError

_OF_SCHEMA = re.compile(r"at \d+\(\d+\): failed to compile JSON schema: (.*?)(?:\n +\d+ \|.*)?", re.DOTALL)

MAX_SOURCE_CHARS = 64 * 1024
"""Of a schema, a pattern, choices or a grammar, as the client wrote them."""
MAX_GRAMMAR_CHARS = 4 * MAX_SOURCE_CHARS
"""Of what is made of it, quoted twice. With the limits below, any grammar of this size compiles, or is refused, in well
under a second."""

ENCODED_CHARS = 64
"""At least so many characters are encoded to find the next token where a grammar leaves no choice, and less than twice
as many: the whole text was encoded anew for each of its tokens."""


def _limits(*, grammar_size: int, lexer_fuel: int, lexer_states: int) -> LLParserLimits:
    return LLParserLimits(
        max_grammar_size=grammar_size,
        initial_lexer_fuel=lexer_fuel,  # 50,000 take about 1 ms
        step_lexer_fuel=200_000,  # about 15 ms: the longest that a mask may take
        step_max_items=50_000,
        max_lexer_states=lexer_states,  # 1-2 KB each, in each sequence
        verbose_errors=False,
    )


class Limits(Enum):
    """How much may be spent on a grammar. One that compiles within the short ones is not limited by them afterwards."""

    SHORT = _limits(grammar_size=5_000, lexer_fuel=100_000, lexer_states=50_000)
    """Tens of milliseconds; all but extraordinary grammars need about one."""
    LONG = _limits(grammar_size=50_000, lexer_fuel=1_000_000, lexer_states=50_000)


class GrammarCompiler:
    def __init__(
        self,
        tokens: Sequence[bytes],
        *,
        special_token_ids: Sequence[int],
        eos_token_ids: Sequence[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        """`tokens`: the bytes of every id, empty for ids without any; `encode` takes special tokens' text as text.

        Takes a second or two for 150,000 tokens.
        """
        self._tokenizer: LLTokenizer | None = None
        if eos_token_ids:
            wrapped = TokenizerWrapper(_Tokenizer(tokens, special_token_ids, eos_token_ids[0], encode))
            self._tokenizer = LLTokenizer(wrapped, len(tokens), list(eos_token_ids))

    def compile(self, grammar: str, limits: Limits = Limits.LONG) -> LLMatcher:
        """A matcher at its beginning. Releases the GIL. Raises `GrammarError`."""
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise GrammarError("the structure is too large once it is written as a grammar; ask for less")
        if self._tokenizer is None:
            raise GrammarError("the model names no token that ends an answer, so its structure cannot be enforced")
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits.value)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask builds what later ones share, and may be too much already
        if matcher.is_error():
            raise GrammarError(explain(matcher))
        return matcher


class _Tokenizer:
    """What `TokenizerWrapper` expects, by its names."""

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_token_ids: Sequence[int],
        eos_token_id: int,
        encode: Callable[[str], list[int]],
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special_token_ids
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self._encode = encode
        self._encode_piece = lru_cache(1024)(encode)

    def __call__(self, text: bytes) -> list[int]:
        """Of all that must follow, one token is used before this is asked again, about what is left then. So only the
        beginning is encoded as the model would; pieces behind it end up the same for many beginnings."""
        whole = text.decode("utf-8", "replace")
        begun = min(len(whole), ENCODED_CHARS + len(whole) % ENCODED_CHARS)
        token_ids = list(self._encode(whole[:begun]))
        for at in range(begun, len(whole), ENCODED_CHARS):
            token_ids += self._encode_piece(whole[at : at + ENCODED_CHARS])
        return token_ids


def explain(matcher: LLMatcher) -> str:
    """The matcher's error, without the state that llguidance appends, or our own text around a client's schema."""
    error = matcher.get_error().split("\n<", 1)[0].strip()
    if (of_schema := _OF_SCHEMA.fullmatch(error)) is not None:
        error = of_schema[1]
    error = error.partition(" in regex /")[0].partition(":  (")[0]
    return "no text satisfies it" if error.startswith("NoExtension") else error
