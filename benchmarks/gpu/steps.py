"""Decode steps and a prompt of one model shape, random weights, each beside its floor. Prints one JSON line a case.

A batch whose KV pages do not fit the card is left out, with the reason.

python benchmarks/gpu/steps.py MODEL [--quantization fp8] [--kv-cache-dtype fp8] [--batch 1 8 32 64] [--device cuda]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from floors import ceilings_of
from shapes import MODELS, folder
from tandem_contract.flags import ServeFlags
from tandem_runtime.bench.roofline import Shape, Work, decode_step, prefill
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan, StepResult
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.graphs import CudaCapture
from tandem_runtime.execution.parallel import TensorParallel
from tandem_runtime.execution.runner import LaunchedStep, ModelRunner
from tandem_runtime.execution.settings import ExecutionConfig

GREEDY = SamplingParams(max_tokens=1 << 20, temperature=0.0)


class OneOfMany(TensorParallel):
    """A rank whose peers are not there: the collectives are left out."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_last_dim(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat(1, self.world)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def minimum(self, value: int) -> int:
        return value


def main() -> None:
    args = _arguments()
    model = MODELS[args.model]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        runner = _load(args, folder(args.model, Path(scratch)))
    print(
        f"loaded, warmed up and captured in {time.perf_counter() - began:.0f} s: {runner.num_pages} pages", flush=True
    )
    weight_bytes = 1.0 if args.quantization == "fp8" else 2.0
    kv_bytes = 1.0 if args.kv_cache_dtype == "fp8" else 2.0
    shape = Shape.of(model.config, weight_bytes=weight_bytes, kv_bytes=kv_bytes, tensor_parallel=model.tensor_parallel)
    kind = f"{args.model} {args.quantization} kv {args.kv_cache_dtype}"
    for batch in args.batch:
        case, pages = f"{kind} decode, batch {batch}, context {args.context}", runner.layout.pages_for(args.context + 1)
        if batch * pages > runner.num_pages:
            # Sequences that share pages would find them in caches, and look faster than they are.
            left_out = f"needs {batch * pages} KV pages, and beside the weights the card has {runner.num_pages}"
            print(json.dumps({"case": case, "left out": left_out}), flush=True)
            continue
        times = [*_decodes(runner, batch, args.context, args.steps)]
        _report(case, decode_step(shape, [args.context + 1] * batch), times)
    times = [*_prefills(runner, args.prefill, 5)]
    _report(f"{kind} prefill, {args.prefill} tokens", prefill(shape, args.prefill), times)


def _load(args: argparse.Namespace, path: Path) -> ModelRunner:
    flags = ServeFlags(
        model=str(path),
        device=args.device,
        load_format="dummy",
        max_num_seqs=max(args.batch),
        max_num_batched_tokens=max(args.prefill, 2048),
        max_model_len=max(args.context + 8, args.prefill + 8),
        quantization=args.quantization,
        kv_cache_dtype=args.kv_cache_dtype,
        kv_cache_memory=args.kv_cache_memory,
        gpu_memory_utilization=0.95,
    )
    world = MODELS[args.model].tensor_parallel
    config = dataclasses.replace(ExecutionConfig.from_flags(flags), tensor_parallel_size=world)
    runner = ModelRunner(config, world=world, tp=OneOfMany(0, world))
    runner.load()
    runner.warm_up()
    if args.device == "cuda":
        runner.capture_graphs(CudaCapture())
    return runner


def _decodes(runner: ModelRunner, batch: int, context: int, count: int) -> Iterator[StepResult]:
    """Steps at one place, each launched while the one before is computed, as the engine does."""
    pages = runner.layout.pages_for(context + 1)
    for slot in range(batch):
        start = SlotStart(slot, [1] * context, [], list(range(slot * pages, (slot + 1) * pages)), GREEDY)
        runner.execute(StepPlan(0, [start], []))
    plan = StepPlan(0, [], [Chunk(slot, context, 1, None, [], True) for slot in range(batch)])
    yield from _ahead(runner, plan, count)


def _prefills(runner: ModelRunner, tokens: int, count: int) -> Iterator[StepResult]:
    ids = [i % 1000 for i in range(tokens)]
    start = SlotStart(0, ids, [], list(range(runner.layout.pages_for(tokens))), GREEDY)
    yield from _ahead(runner, StepPlan(0, [start], [Chunk(0, 0, tokens, ids, [], True)]), count)


def _ahead(runner: ModelRunner, plan: StepPlan, count: int) -> Iterator[StepResult]:
    running: LaunchedStep = runner.launch(plan)
    for i in range(count + 2):
        following = runner.launch(plan)
        result = running.result()
        running = following
        if i >= 2:
            yield result
    running.result()


def _report(case: str, work: Work, results: list[StepResult]) -> None:
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "H200, not this device"
    seconds = statistics.median(result.seconds for result in results)
    gap = statistics.median(result.gap_seconds for result in results)
    floor = work.floor_seconds(ceilings_of(card))
    found: dict[str, Any] = {
        "case": case,
        "ms": round(seconds * 1e3, 3),
        "floor ms": round(floor * 1e3, 3),
        "over floor": round(seconds / floor, 2),
        "gap us": round(gap * 1e6, 1),
        "card": card,
    }
    print(json.dumps(found), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--prefill", type=int, default=3500)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--quantization", choices=("none", "fp8"), default="none")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8"), default="auto")
    parser.add_argument("--kv-cache-memory", metavar="SIZE", help="default: what the card has left")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
