"""Tensor parallelism: which part of a dimension a rank holds, and the collectives over torch.distributed."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

JOIN_TIMEOUT_S = 300.0


def init_group(*, rank: int, world: int, init_method: str, device: str) -> None:
    """Joins the default process group (gloo on the CPU, NCCL on CUDA); returns when all `world` ranks have.

    Raises when they have not within `JOIN_TIMEOUT_S`, which is also the longest a rank waits in one collective.
    """
    if device == "cuda":
        torch.cuda.set_device(rank)  # or what NCCL sets up first would open a context on card 0
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=init_method,
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=JOIN_TIMEOUT_S),
        device_id=torch.device("cuda", rank) if device == "cuda" else None,
    )


class TensorParallel:
    """One rank of `world`. With one rank every collective is the identity and no process group is needed."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world

    def part(self, size: int) -> range:
        """This rank's equal part of a dimension; the caller has checked that `world` divides it."""
        step = size // self.world
        return range(self.rank * step, (self.rank + 1) * step)

    def vocabulary(self, size: int) -> range:
        """This rank's token ids; the last ranks' part is shorter where `world` does not divide the vocabulary."""
        step = self.vocabulary_step(size)
        return range(min(self.rank * step, size), min((self.rank + 1) * step, size))

    def vocabulary_step(self, size: int) -> int:
        return -(-size // self.world)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sums `x` over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def gather_last_dim(self, x: torch.Tensor) -> torch.Tensor | None:
        """Concatenates equally shaped `x` of all ranks along the last dimension; None on every rank but 0."""
        if self.world == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.world)] if self.rank == 0 else None
        dist.gather(x.contiguous(), parts)
        return None if parts is None else torch.cat(parts, dim=-1)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's `x` on every rank, in place."""
        if self.world > 1:
            dist.broadcast(x, src=0)
        return x

    def minimum(self, value: int) -> int:
        """The smallest of the ranks' values."""
        if self.world == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        least = torch.tensor(value, device=device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)
