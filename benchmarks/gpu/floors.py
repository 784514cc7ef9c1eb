"""What a card could do at best with a server's workload, from the floors of its steps. Pure."""

from __future__ import annotations

from typing import NamedTuple

from tandem_runtime.bench.roofline import CEILINGS, Ceilings, Shape, decode_step, prefill
from tandem_runtime.bench.serve.workload import Workload


def ceilings_of(card: str) -> Ceilings:
    """`card`: as CUDA names it. Raises `ValueError`."""
    for name, ceilings in CEILINGS.items():
        if name in card:
            return ceilings
    raise ValueError(f"no ceilings of {card} are known ({', '.join(CEILINGS)}): measure them with card.py, add them")


class ServerFloor(NamedTuple):
    """Seconds, and output tokens per second, of as many requests as are in flight, sent at once."""

    ttft: float
    """Mean, with one prompt after the other."""
    tpot: float
    """Of a step with all of them half way through their answers."""
    output_tokens_per_s: float


def server_floor(shape: Shape, workload: Workload, concurrency: int, ceilings: Ceilings) -> ServerFloor:
    prompt = prefill(shape, workload.input_len).floor_seconds(ceilings)
    context = workload.input_len + workload.output_len // 2
    step = decode_step(shape, [context] * concurrency).floor_seconds(ceilings)
    seconds = concurrency * prompt + (workload.output_len - 1) * step
    return ServerFloor(prompt * (concurrency + 1) / 2, step, concurrency * workload.output_len / seconds)
