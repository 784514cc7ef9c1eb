"""What every layer's constructor needs: the model's shape, this rank's share of it, and where weights come from."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_runtime.execution.config import ModelConfig
from tandem_runtime.execution.parallel import TensorParallel
from tandem_runtime.execution.weights import WeightSource


@dataclass(frozen=True, slots=True)
class BuildContext:
    config: ModelConfig
    tp: TensorParallel
    weights: WeightSource
    kv_heads: range
    """The whole model's KV heads that this rank holds (replicated where there are more ranks than heads)."""

    @property
    def q_heads(self) -> range:
        return self.tp.part(self.config.num_heads)
