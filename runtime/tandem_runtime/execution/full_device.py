"""A card that runs out of memory while a process starts, as an error that has the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from tandem_runtime.core.errors import StartupError

_SAID = ("out of memory", "ALLOC_FAILED", "NOT_ENOUGH_WORKSPACE")
"""By CUDA, Triton and CUDA's libraries, none of which know PyTorch's error."""


class Usage(NamedTuple):
    """Bytes of a card."""

    allocated: int
    """By this process's tensors."""
    free: int
    total: int


ReadUsage = Callable[[], Usage]


def cuda_usage() -> Usage:
    return Usage(torch.cuda.memory_allocated(), *torch.cuda.mem_get_info())


@contextmanager
def full_device(problem: str, remedy: str, usage: ReadUsage = cuda_usage) -> Iterator[None]:
    """What runs out of a card's memory inside raises `StartupError`: `problem`, the numbers, `remedy`."""
    try:
        yield
    except RuntimeError as error:
        if not (said := _ran_out(error)):
            raise
        allocated, free, total = usage()
        raise StartupError(
            f"{problem}: {allocated / 2**30:.1f} GiB were allocated and {free / 2**30:.1f} GiB of"
            f" {total / 2**30:.1f} GiB are free ({said}); {remedy}"
        ) from None


def _ran_out(error: BaseException | None) -> str:
    """The first line of what was said of memory, or nothing.

    A capture that ran out of it is invalid, and its end says only that.
    """
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in _SAID):
            return str(error).split("\n", 1)[0]
        error = error.__cause__ or error.__context__
    return ""
