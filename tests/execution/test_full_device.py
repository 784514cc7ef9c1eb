"""A card that fills up while a pod starts is a start-up error with the numbers, at whichever step it fills up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.step_driver import tiny_execution_config
from tandem_runtime.core.errors import StartupError
from tandem_runtime.execution.full_device import Usage, full_device
from tandem_runtime.execution.graphs import Graph
from tandem_runtime.execution.parallel import TensorParallel
from tandem_runtime.execution.runner import ModelRunner

GIB = 1 << 30
TRIED = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore advice")
NUMBERS = r"70\.0 GiB were allocated and 1\.5 GiB of 80\.0 GiB are free \(CUDA out of memory\. Tried .* 2\.00 GiB\.\); "


def usage() -> Usage:
    return Usage(70 * GIB, 3 * GIB // 2, 80 * GIB)


class Filling(TensorParallel):
    """A rank that runs out of its card's memory once `full` is set."""

    full = False

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        if self.full:
            raise TRIED
        return x


def test_the_weights_or_the_largest_step_do_not_fit(tiny: Callable[..., Path]) -> None:
    def allocate(num_bytes: int) -> torch.Tensor:
        raise TRIED

    runner = ModelRunner(tiny_execution_config(tiny("qwen3")), allocate=allocate, usage=usage)
    with pytest.raises(StartupError, match="does not fit the GPU: " + NUMBERS + ".*--max-num-batched-tokens"):
        runner.load()


def test_a_step_of_the_warm_up_does_not_fit(tiny: Callable[..., Path]) -> None:
    tp = Filling(0, 1)
    runner = ModelRunner(tiny_execution_config(tiny("qwen3")), tp=tp, usage=usage)
    runner.load()
    tp.full = True
    with pytest.raises(StartupError, match="before the first step has run: " + NUMBERS + "lower --gpu-memory-util"):
        runner.warm_up()


def test_a_graph_does_not_fit(tiny: Callable[..., Path]) -> None:
    """A capture that is broken off is invalid, and it is that which its end raises."""

    def capture(work: Callable[[], torch.Tensor | None]) -> tuple[Graph, torch.Tensor | None]:
        try:
            raise TRIED
        except torch.OutOfMemoryError:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904

    runner = ModelRunner(replace(tiny_execution_config(tiny("qwen3")), backend="triton"), usage=usage)
    runner.load()
    with pytest.raises(StartupError, match="captured as graphs: " + NUMBERS + r".*\(--no-cuda-graphs\)"):
        runner.capture_graphs(capture)


@pytest.mark.parametrize(
    "said", ["Triton Error [CUDA]: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"]
)
def test_libraries_that_do_not_know_pytorchs_error(said: str) -> None:
    with pytest.raises(StartupError, match="full: 70"), full_device("full", "buy more", usage):
        raise RuntimeError(said)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="illegal address"), full_device("full", "buy more", usage):
        raise RuntimeError("CUDA error: an illegal address was encountered")
