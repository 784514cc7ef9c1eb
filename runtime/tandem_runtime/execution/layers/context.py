"""What every layer's constructor needs: the model's shape, this rank's share of it, weights and operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tandem_runtime.execution.config import ModelConfig, MoeConfig
from tandem_runtime.execution.parallel import TensorParallel
from tandem_runtime.execution.weights import Part, WeightSource


class Product(Protocol):
    """y = x W^T + b."""

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor: ...
    def add_to(self, residual_TN: torch.Tensor, x_TK: torch.Tensor) -> torch.Tensor:
        """residual + x W^T + b; may overwrite `residual_TN`."""


class TiedProduct(Protocol):
    """A token embedding whose rows are also the output head's."""

    def rows(self, ids_T: torch.Tensor) -> torch.Tensor: ...
    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor: ...


class FeedForward(Protocol):
    """The second half of a decoder layer."""

    def add_to(self, residual_TE: torch.Tensor, x_TE: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """What layers compute in other ways on other devices: see `execution.backends`."""

    rms_norm: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    """(x, weight, eps): over the last dimension, in fp32, returned in x's dtype."""
    silu_and_mul: Callable[[torch.Tensor], torch.Tensor]
    """[..., 2 I] (gate, then up) -> [..., I]; may overwrite its argument."""
    linear: Callable[[WeightSource, Sequence[Part], torch.Tensor | None], Product]
    """(weights, parts, bias): of the layers' projections, which a quantised model keeps quantised."""
    dense: Callable[[WeightSource, Sequence[Part], torch.Tensor | None], Product]
    """As `linear`, never quantised: head and router."""
    tied: Callable[[WeightSource, Sequence[Part]], TiedProduct]
    moe: Callable[[BuildContext, str], FeedForward]
    """(context, name): the mixture of experts at `name`."""


@dataclass(frozen=True, slots=True)
class BuildContext:
    config: ModelConfig
    tp: TensorParallel
    weights: WeightSource
    ops: Ops
    kv_heads: range
    """The whole model's KV heads that this rank holds (replicated where there are more ranks than heads)."""

    expert_parallel: bool = False
    """Whether ranks hold whole experts instead of a part of each."""

    @property
    def q_heads(self) -> range:
        return self.tp.part(self.config.num_heads)

    def experts(self, name: str, moe: MoeConfig) -> tuple[range, range]:
        """The experts of `name` that this rank holds, and the part of each one's intermediate size."""
        if self.expert_parallel:
            others = set(range(moe.num_experts)) - set(self.tp.part(moe.num_experts))
            projections = ("gate_proj", "up_proj", "down_proj")
            self.weights.leave(f"{name}.experts.{i}.{projection}.weight" for i in others for projection in projections)
            return self.tp.part(moe.num_experts), range(moe.intermediate_size)
        return range(moe.num_experts), self.tp.part(moe.intermediate_size)
