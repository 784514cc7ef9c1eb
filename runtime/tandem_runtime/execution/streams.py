"""The stream that steps run in."""

from __future__ import annotations

import torch

STEP_PRIORITY = -1
"""Of CUDA streams the lower goes first; 0 is that of all others, those of KV pages among them."""


def step_stream() -> torch.cuda.Stream:
    """On the current device. What waits in it takes the multiprocessors before copies and checksums of pages do."""
    return torch.cuda.Stream(priority=STEP_PRIORITY)  # type: ignore[no-untyped-call]
