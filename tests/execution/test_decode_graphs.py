"""Which batch sizes get a graph before a start takes too long, and what runs in whose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tandem_runtime.execution.attention.backend import HeadNorms, PageRun, StepBatch, StepIds
from tandem_runtime.execution.attention.tables import StepTables
from tandem_runtime.execution.graphs import CAPTURE_BUDGET_S, DecodeGraphs, Graph


class Attention:
    """A `ReplayableAttention` that attends to nothing."""

    kv_PHLCSD = torch.zeros(1)

    def begin(self, batch: StepBatch) -> StepIds:
        raise NotImplementedError

    def attend(self, layer: int, qkv_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
        raise NotImplementedError

    def append_pages(self, runs: Sequence[PageRun]) -> None: ...

    def best_splits(self, num_decodes: int, max_tokens: int) -> int:
        return 1

    def use(self, tables: StepTables, splits: int) -> StepIds:
        return StepIds(tables.ids_T, tables.slots_T)


class Card:
    """Takes a while for each capture; a graph's logits are its rows' token ids."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.captured: list[int] = []
        self._seconds = seconds
        self.graphs = DecodeGraphs(
            Attention(), lambda tables, splits: tables.ids_T[:, None].clone(), self.capture, max_tokens=64
        )

    def capture(self, work: Callable[[], torch.Tensor | None]) -> tuple[Graph, torch.Tensor | None]:
        result = work()
        assert result is not None
        self.captured.append(len(result))
        self.now += self._seconds

        class Again:
            def replay(self) -> None:
                found = work()
                assert found is not None
                result.copy_(found)

        return Again(), result

    def run(self, rows: int) -> list[int] | None:
        """The rows' logits; None without a graph."""
        ids_T = torch.arange(100, 100 + rows)
        batch = StepBatch(ids_T, torch.arange(rows), ids_T, rows, (), torch.zeros(8, 8, dtype=torch.int32), ())
        replayed, logits = self.graphs.run(batch)
        return logits[:, 0].tolist() if replayed and logits is not None else None


def test_batches_run_in_the_next_larger_graph() -> None:
    card = Card(seconds=0.1)
    card.graphs.capture(8, lambda done, total: None, clock=lambda: card.now)
    assert card.captured == [8, 4, 2, 1]
    for rows in (1, 3, 8):
        assert card.run(rows) == list(range(100, 100 + rows))
    assert card.run(9) is None


def test_a_start_waits_no_longer_than_it_may(caplog: pytest.LogCaptureFixture) -> None:
    card = Card(seconds=CAPTURE_BUDGET_S / 2 + 1)
    progress: list[tuple[int, int]] = []
    card.graphs.capture(8, lambda done, total: progress.append((done, total)), clock=lambda: card.now)
    assert (card.captured, progress) == ([8, 4], [(1, 4), (2, 4)])
    assert card.run(1) == [100]
    assert "2 of 4 decode graphs were captured in 32 s" in caplog.text


def test_ranks_stop_together() -> None:
    """A rank alone in a capture would wait for the others in a collective."""
    card = Card(seconds=0.1)
    answers = iter([True, False])
    card.graphs.capture(8, lambda done, total: None, agree=lambda in_time: next(answers), clock=lambda: card.now)
    assert card.captured == [8]
