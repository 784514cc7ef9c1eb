"""Small tensors between host and device without waiting for either.

Page-locked buffers come from torch's caching allocator, which reuses one only after the copies from it have ended.
"""

from __future__ import annotations

import torch


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`host` on the device, in the order of the current stream."""
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def to_host(there: torch.Tensor) -> torch.Tensor:
    """A copy that may be read once an event recorded after this call has happened; of host tensors, themselves."""
    if there.device.type == "cpu":
        return there
    return torch.empty(there.shape, dtype=there.dtype, pin_memory=True).copy_(there, non_blocking=True)
