"""The constraints of the sequences that run, by slot: masks for the next step are made while the device computes it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from tandem_runtime.core.errors import GrammarError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.grammar.constraint import Constraint, new_masks
from tandem_runtime.grammar.library import GrammarLibrary


class ConstraintTable:
    """Implements `execution.constraints.Constraints`; all calls from the executor's thread."""

    def __init__(self, library: GrammarLibrary, *, max_num_seqs: int, vocab_size: int) -> None:
        self._library = library
        self._constraints: dict[int, Constraint] = {}
        self._limited: dict[int, bool] = {}
        """Whether a slot's mask means anything."""
        self._masks = new_masks(max_num_seqs, vocab_size)
        # One thread: it does things in order, and what was submitted last is done last.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar-masks")
        self._last: Future[None] | None = None

    def start(self, slot: int, sampling: SamplingParams, output_token_ids: list[int]) -> None:
        self._submit(lambda: self._start(slot, sampling, output_token_ids))

    def advance(self, slots: list[int], token_ids: Callable[[], list[int]]) -> None:
        self._submit(lambda: self._advance(slots, token_ids))

    def allowed(self, slot: int) -> NDArray[np.uint8] | None:
        self._wait()
        return self._masks[slot] if self._limited[slot] else None

    def failure(self, slot: int) -> str | None:
        self._wait()
        return self._constraints[slot].failure

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _submit(self, work: Callable[[], None]) -> None:
        last = self._last

        def after_last() -> None:
            if last is not None:
                last.result()  # raises again what went wrong first
            work()

        self._last = self._thread.submit(after_last)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()

    def _start(self, slot: int, sampling: SamplingParams, output_token_ids: list[int]) -> None:
        try:
            matcher = self._library.matcher(sampling.grammar) if sampling.grammar else None
            constraint = Constraint(sampling, matcher)
        except GrammarError as error:  # of a grammar that the library dropped and could not make again
            constraint = Constraint(sampling, None)
            constraint.failure = str(error)
        for token_id in output_token_ids:
            constraint.advance(token_id)
        self._constraints[slot] = constraint
        self._fill(slot)

    def _advance(self, slots: list[int], token_ids: Callable[[], list[int]]) -> None:
        for slot, token_id in zip(slots, token_ids(), strict=True):
            constraint = self._constraints[slot]
            if constraint.failure is None:
                constraint.advance(token_id)
                self._fill(slot)

    def _fill(self, slot: int) -> None:
        self._limited[slot] = self._constraints[slot].fill(self._masks[slot])
