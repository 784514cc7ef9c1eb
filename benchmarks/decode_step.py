"""Times the executor alone: decode steps at several batch sizes, prefill throughput, and where a step's time goes.

    python benchmarks/decode_step.py MODEL_DIR [--context 160] [--batch 1 8 32] [--prefill 512 2048] [--threads 2]

Prints the minimum and the median over many steps: on a shared machine the minimum is the figure to compare.
`--dummy` needs only MODEL_DIR/config.json. The breakdown groups torch's own operator times (self CPU time).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

from tandem_contract.flags import ServeFlags
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.settings import ExecutionConfig
from torch.profiler import ProfilerActivity, profile

GREEDY = SamplingParams(max_tokens=1 << 20, temperature=0.0)
GROUPS = {
    "linear": ("mkldnn::_linear", "aten::linear", "aten::addmm", "aten::mm", "aten::mkldnn_linear"),
    "attention": ("scaled_dot_product", "aten::index_select", "aten::lerp", "aten::sigmoid"),
    "kv write": ("aten::index_put", "aten::_index_put"),
    "rope": ("aten::roll", "aten::addcmul", "aten::cos", "aten::sin"),
    "norm": ("rms_norm", "aten::pow", "aten::rsqrt", "aten::mean"),
    "activation": ("aten::silu", "aten::mul_"),
    "sampling": ("aten::argmax",),
}


def main() -> None:
    args = _arguments()
    flags = ServeFlags(
        model=args.model,
        device="cpu",
        dtype=args.dtype,
        load_format="dummy" if args.dummy else "safetensors",
        max_num_seqs=max(args.batch),
        max_num_batched_tokens=max(args.prefill),
        max_model_len=max(args.context + args.steps + 64, max(args.prefill) + 1),
        kv_cache_memory=args.kv_cache_memory,
        cpu_threads=args.threads,
    )
    began = time.perf_counter()
    runner = ModelRunner(ExecutionConfig.from_flags(flags))
    runner.load()
    print(f"loaded in {time.perf_counter() - began:.1f} s, {runner.num_pages} pages")
    runner.warm_up()
    for batch in args.batch:
        step = _prepare_decode(runner, batch, args.context)
        _report(f"decode, batch {batch}, context {args.context}", _time(step, args.steps), batch)
    if args.breakdown:
        _breakdown(_prepare_decode(runner, args.breakdown, args.context), args.breakdown)
    for tokens in args.prefill:
        _report(f"prefill, {tokens} tokens", _time(_prepare_prefill(runner, tokens), max(3, args.steps // 20)), tokens)


def _prepare_decode(runner: ModelRunner, batch: int, context: int):  # type: ignore[no-untyped-def]
    """A step over `batch` sequences of `context` tokens, always at the same place: every step costs the same."""
    pages = runner.layout.pages_for(context + 1)
    for slot in range(batch):
        first = slot * pages % max(1, runner.num_pages - pages)
        start = SlotStart(slot, [1] * context, [], list(range(first, first + pages)), GREEDY)
        runner.execute(StepPlan(0, [start], []))
    chunks = [Chunk(slot, context, 1, None, [], True) for slot in range(batch)]
    return lambda: runner.execute(StepPlan(0, [], chunks))


def _prepare_prefill(runner: ModelRunner, tokens: int):  # type: ignore[no-untyped-def]
    ids = [i % 1000 for i in range(tokens)]
    start = SlotStart(0, ids, [], list(range(runner.layout.pages_for(tokens))), GREEDY)
    return lambda: runner.execute(StepPlan(0, [start], [Chunk(0, 0, tokens, ids, [], True)]))


def _time(step, count: int) -> list[float]:  # type: ignore[no-untyped-def]
    for _ in range(3):
        step()
    return [step().seconds for _ in range(count)]


def _report(name: str, seconds: list[float], tokens: int) -> None:
    least, middle = min(seconds), statistics.median(seconds)
    print(f"{name:36s} min {least * 1e3:8.2f} ms  median {middle * 1e3:8.2f} ms  {tokens / least:9.0f} tok/s at min")


def _breakdown(step, batch: int, count: int = 20) -> None:  # type: ignore[no-untyped-def]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(count):
            step()
    groups: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for event in profiler.key_averages():
        group = next((g for g, names in GROUPS.items() if any(name in event.key for name in names)), "other ops")
        groups[group] += event.self_cpu_time_total / 1e3 / count
        calls[group] += event.count // count
    print(f"  batch {batch} under the profiler, ms a step (operators):")
    for group, milliseconds in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"    {group:12s} {milliseconds:7.2f} ({calls[group]})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prefill", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--context", type=int, default=160)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--breakdown", type=int, default=8, help="batch size of the breakdown; 0: none")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--kv-cache-memory", default="2GiB")
    parser.add_argument("--dummy", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
