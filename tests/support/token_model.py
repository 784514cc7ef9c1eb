"""A stand-in for the model that keeps what a real one keeps where it keeps it: token ids in the bytes of KV pages.

The next token is a hash of every earlier token *as read back through the page table*, so stale, misplaced or missing
pages change the text, as they would with a real model.
"""

from __future__ import annotations

import threading
import zlib
from array import array

from tandem_runtime.core.kv import KVLayout
from tandem_runtime.core.plan import Chunk, StepPlan, StepResult

VOCAB_SIZE = 1000
PAGE_SIZE = 4


def token_layout(page_size: int = PAGE_SIZE) -> KVLayout:
    """One head, one layer, one float32 per token: room for one id as K (V stays unused)."""
    return KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, page_size=page_size, dtype="float32")


def next_token(tokens: list[int]) -> int:
    return zlib.crc32(array("i", tokens).tobytes()) % VOCAB_SIZE


def continue_text(prompt: list[int], num_tokens: int) -> list[int]:
    """What a correct engine answers, greedily."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class Computed:
    """Implements `engine.executor.Launched`: there is no device to wait for."""

    done = True

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        return self._result


class TokenModelRunner:
    """Implements `engine.executor.Runner`. `gate` holds up every step while it is cleared."""

    def __init__(self, num_pages: int, max_num_seqs: int, layout: KVLayout | None = None) -> None:
        self.layout = layout or token_layout()
        self.memory = bytearray(num_pages * self.layout.page_bytes)
        self._cells = memoryview(self.memory).cast("i")
        self._tables: list[list[int]] = [[] for _ in range(max_num_seqs)]
        self._last = [0] * max_num_seqs
        self.gate = threading.Event()
        self.gate.set()
        self.computed_tokens = 0

    def launch(self, plan: StepPlan) -> Computed:
        self.gate.wait()
        for start in plan.starts:
            self._tables[start.slot] = list(start.page_ids)
        sampled = [token for chunk in plan.chunks if (token := self._compute(chunk)) is not None]
        return Computed(StepResult(plan.step, sampled, {}, {}, 0.0, 0.0))

    def _compute(self, chunk: Chunk) -> int | None:
        table = self._tables[chunk.slot]
        table += chunk.append_page_ids
        token_ids = [self._last[chunk.slot]] if chunk.token_ids is None else chunk.token_ids
        for position, token in enumerate(token_ids, start=chunk.start):
            self._cells[self._cell(table, position)] = token
        self.computed_tokens += chunk.num_tokens
        if not chunk.sample:
            return None
        context = [self._cells[self._cell(table, position)] for position in range(chunk.start + chunk.num_tokens)]
        self._last[chunk.slot] = next_token(context)
        return self._last[chunk.slot]

    def _cell(self, table: list[int], position: int) -> int:
        page, offset = divmod(position, self.layout.page_size)
        return table[page] * self.layout.page_bytes // 4 + offset
