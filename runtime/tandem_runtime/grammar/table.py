"""The constraints of the sequences that run, by slot: masks for the next step are made while the device computes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLExecutor

from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.grammar.constraint import Constraint, Mask, new_masks
from tandem_runtime.grammar.library import GrammarLibrary


class ConstraintTable:
    """Implements `execution.constraints.Constraints`; all calls from the executor's thread."""

    def __init__(
        self, library: GrammarLibrary, *, max_num_seqs: int, vocab_size: int, threads: int | None = None
    ) -> None:
        """`library` has the grammar of every sequence that starts. `threads`: for the masks of many sequences."""
        self._library = library
        self._constraints: dict[int, Constraint] = {}
        self._limited: dict[int, bool] = {}
        """Whether a slot's mask means anything."""
        self._masks_SB = new_masks(max_num_seqs, vocab_size)
        # Few of the cores: the others compute, where there is no device.
        self._executor = LLExecutor(threads or min(8, 1 + len(os.sched_getaffinity(0)) // 4))
        # One thread: it does things in order, and what was submitted last is done last.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar-masks")
        self._last: Future[None] | None = None

    def start(self, slot: int, sampling: SamplingParams, output_token_ids: list[int]) -> None:
        self._submit(lambda: self._start(slot, sampling, output_token_ids))

    def advance(self, slots: list[int], token_ids: Callable[[], list[int]]) -> None:
        self._submit(lambda: self._advance(slots, token_ids))

    def allowed(self, slot: int) -> Mask | None:
        self._wait()
        return self._masks_SB[slot] if self._limited[slot] else None

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
        compiled = self._library.find(sampling.grammar) if sampling.grammar else None
        constraint = Constraint(sampling, None if compiled is None else compiled.matcher())
        if sampling.grammar and compiled is None:
            # Who asked for it left after this step was planned; what is sampled here is looked at by nobody.
            constraint.failure = "the request has ended"
        for token_id in output_token_ids:
            constraint.advance(token_id)
        self._constraints[slot] = constraint
        self._fill([slot])

    def _advance(self, slots: list[int], token_ids: Callable[[], list[int]]) -> None:
        going: list[int] = []
        for slot, token_id in zip(slots, token_ids(), strict=True):
            constraint = self._constraints[slot]
            if constraint.failure is None:
                constraint.advance(token_id)
                going.append(slot)
        self._fill(going)

    def _fill(self, slots: Sequence[int]) -> None:
        asking = [(matcher, slot) for slot in slots if (matcher := self._constraints[slot].asks) is not None]
        masks_SB = self._masks_SB
        if asking:
            self._executor.unsafe_compute_mask_ptr(asking, masks_SB.ctypes.data, masks_SB.shape[1], len(masks_SB))
        for slot in slots:
            self._limited[slot] = self._constraints[slot].complete(masks_SB[slot])
