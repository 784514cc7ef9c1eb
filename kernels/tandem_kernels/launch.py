"""A kernel launch as a value: an op decides it purely, `run` acts, and tests compile the very same one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch

HOPPER = 90


class Launch(NamedTuple):
    kernel: Any
    """A `triton.jit` function."""
    grid: tuple[int, ...]
    args: dict[str, Any]
    """Tensors and numbers, by the kernel's parameter names."""
    constants: dict[str, Any]
    """The kernel's `tl.constexpr` parameters."""
    num_warps: int
    num_stages: int = 2

    def run(self) -> None:
        if 0 not in self.grid:
            _launchers[-1](self)

    @property
    def options(self) -> dict[str, Any]:
        # Fusing multiply and add is Triton's default up to 3.9, with a warning that it will not stay so.
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


Launcher = Callable[[Launch], None]


def on_device(launch: Launch) -> None:
    launch.kernel[launch.grid](**launch.args, **launch.constants, **launch.options)


_launchers: list[Launcher] = [on_device]


@contextmanager
def launched_by(launcher: Launcher) -> Iterator[None]:
    """Launches inside are handed to `launcher` instead: how machines without the device see what runs there."""
    _launchers.append(launcher)
    try:
        yield
    finally:
        _launchers.pop()


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least `n`: Triton's tiles have no other sizes."""
    return 1 << max(0, n - 1).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@cache
def capability(device: torch.device) -> int:
    """80, 90, …: of a CUDA device; others are taken for a Hopper GPU."""
    if device.type != "cuda":
        return HOPPER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def sm_count(device: torch.device) -> int:
    """Of a CUDA device; others are taken for an H100."""
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
