"""One sequence's way through its thought and its grammar."""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from tandem_runtime.core.sampling import SamplingParams, Thinking
from tandem_runtime.grammar.compiler import explain

Mask = NDArray[np.uint8]
"""[ceil(vocabulary / 32) * 4]: a bit for each token, lowest first; set where the token may come next."""


class _Phase(Enum):
    START = "start"
    """The next token may open a thought."""
    THINKING = "thinking"
    CLOSING = "closing"
    """The budget is spent: the tokens that close the thought are forced."""
    CLOSED = "closed"
    """The thought has ended; a line break may follow."""
    ANSWER = "answer"


class Constraint:
    """Follows the tokens of one sequence and says what may come next.

    `failure` is set once the grammar cannot go on, because a mask took too much or a token did not fit.
    """

    def __init__(self, sampling: SamplingParams, matcher: LLMatcher | None) -> None:
        """`matcher`: of `sampling.grammar`, at its beginning; None when there is no grammar."""
        self.failure: str | None = None
        self._matcher = matcher
        self._stop_ids = sampling.stop_token_ids
        self._thinking = sampling.thinking
        self._thought = 0
        """Tokens of the thought so far."""
        self._forced: list[int] = []
        self._phase = _Phase.ANSWER
        if self._thinking is not None:
            self._phase = _Phase.START
            if self._thinking.begun:
                self._think(self._thinking)

    def advance(self, token_id: int) -> None:
        thinking = self._thinking
        if self._phase is _Phase.ANSWER or thinking is None:
            self._consume(token_id)
        elif self._phase is _Phase.CLOSING:
            self._forced.pop(0)
            self._phase = _Phase.CLOSING if self._forced else _Phase.ANSWER
        elif self._phase is _Phase.THINKING:
            self._thought += 1
            if token_id == thinking.close_id:
                self._phase = _Phase.CLOSED
            else:
                self._think(thinking)
        elif self._phase is _Phase.START and token_id == thinking.open_id:
            self._think(thinking)
        elif token_id in thinking.break_ids and (self._phase is _Phase.CLOSED or self._matcher is None):
            # Without a grammar, blank lines may come before a thought too.
            self._phase = _Phase.ANSWER if self._phase is _Phase.CLOSED else _Phase.START
        else:
            self._phase = _Phase.ANSWER
            self._consume(token_id)

    @property
    def asks(self) -> LLMatcher | None:
        """The matcher whose mask `complete` begins with; None where it needs none."""
        free = self._phase in (_Phase.THINKING, _Phase.CLOSING) or self.failure is not None
        return None if free else self._matcher

    def complete(self, mask: Mask) -> bool:
        """Turns the mask that `asks` has made, if it asked, into what may come next.

        False, and no meaning in `mask`, when anything may.
        """
        thinking = self._thinking
        if self._phase is _Phase.CLOSING:
            mask[:] = 0
            _set(mask, self._forced[0])
            return True
        if self._matcher is None or self.failure is not None:
            return False
        if self._phase is _Phase.THINKING:
            # A sequence that ended here would have no answer.
            mask[:] = 0xFF
            for token_id in self._stop_ids:
                _clear(mask, token_id)
            return True
        self._check(self._matcher)
        if thinking is not None and self._phase is _Phase.START:
            _set(mask, thinking.open_id)
        if thinking is not None and self._phase is _Phase.CLOSED:
            for token_id in thinking.break_ids:
                _set(mask, token_id)
        return self.failure is None

    def _think(self, thinking: Thinking) -> None:
        spent = thinking.budget is not None and self._thought >= thinking.budget
        self._phase = _Phase.CLOSING if spent else _Phase.THINKING
        self._forced = [thinking.close_id, *thinking.break_ids[-1:]]

    def _consume(self, token_id: int) -> None:
        # After the grammar's end only end tokens come: with ignore_eos.
        if self._matcher is not None and not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)
            self._check(self._matcher)

    def _check(self, matcher: LLMatcher) -> None:
        if self.failure is None and matcher.is_error():
            self.failure = f"the structure became too complex at this point of the answer: {explain(matcher)}"


def new_masks(count: int, vocab_size: int) -> NDArray[np.uint8]:
    """`count` masks, one a row."""
    return np.zeros((count, -(-vocab_size // 32) * 4), dtype=np.uint8)


def _set(mask: NDArray[Any], token_id: int) -> None:
    mask[token_id >> 3] |= 1 << (token_id & 7)


def _clear(mask: NDArray[Any], token_id: int) -> None:
    mask[token_id >> 3] &= ~(1 << (token_id & 7)) & 0xFF
