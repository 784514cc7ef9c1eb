"""RMSNorm (arXiv:1910.07467)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.weights import Part


class RMSNorm:
    def __init__(self, context: BuildContext, name: str, size: int) -> None:
        self.weight = context.weights.take([Part(f"{name}.weight", (size,))])
        self.eps = context.config.rms_norm_eps
        self._shape = (size,)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Over the last dimension, in fp32, returned in x's dtype."""
        return F.rms_norm(x, self._shape, self.weight, self.eps)
