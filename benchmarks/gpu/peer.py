"""The same model shape, prompts and lengths in transformers' continuous batching and in the runner's scheduler.

    python benchmarks/gpu/peer.py [MODEL] [--requests 32] [--prompt 512] [--answer 128] [--device cuda]

Both with random weights in bf16, one process, one card, in turn. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path

import shapes
import torch
from tandem_contract.flags import ServeFlags
from tandem_runtime.core.plan import StepPlan
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.graphs import CudaCapture
from tandem_runtime.execution.runner import LaunchedStep, ModelRunner
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.scheduling import Scheduler, SchedulerConfig, Sequence
from transformers import AutoConfig, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.utils import WorkloadHints


def main() -> None:
    args = _arguments()
    config = shapes.MODELS[args.model].config
    generator = torch.Generator().manual_seed(0)
    high = config["vocab_size"] - 1
    prompts = torch.randint(300, high, (args.requests, args.prompt), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        path = shapes.folder(args.model, Path(scratch))
        ours = _tandem(path, prompts, args)
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
        theirs = _transformers(path, prompts, args)
    tokens = args.requests * args.answer
    for name, seconds in (("tandem", ours), ("transformers", theirs)):
        lengths = f"{args.prompt}:{args.answer}"
        case = {"engine": name, "model": args.model, "requests": args.requests, "lengths": lengths}
        figures = {"s": round(seconds, 2), "output tok/s": round(tokens / seconds), "ratio": round(theirs / seconds, 2)}
        print(json.dumps(case | figures), flush=True)


def _tandem(path: Path, prompts: list[list[int]], args: argparse.Namespace) -> float:
    flags = ServeFlags(
        model=str(path),
        device=args.device,
        load_format="dummy",
        max_num_seqs=args.requests,
        max_model_len=args.prompt + args.answer + 8,
        gpu_memory_utilization=0.8,
    )
    config = ExecutionConfig.from_flags(flags)
    runner = ModelRunner(config)
    runner.load()
    runner.warm_up()
    if args.device == "cuda":
        runner.capture_graphs(CudaCapture())
    seconds = [_serve(runner, config, prompts, args.answer) for _ in range(2)]
    return min(seconds)


def _serve(runner: ModelRunner, config: ExecutionConfig, prompts: list[list[int]], answer: int) -> float:
    """All prompts at once, scheduled one step ahead of the device, as the engine does."""
    scheduler = Scheduler(
        SchedulerConfig(
            page_size=config.page_size,
            num_pages=runner.num_pages,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_prefill_tokens_with_decodes=config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
            max_waiting=len(prompts),
            enable_prefix_caching=False,
            cache_root=b"",
        )
    )
    sampling = SamplingParams(max_tokens=answer, temperature=0.0)
    for i, prompt in enumerate(prompts):
        scheduler.add(Sequence(str(i), prompt, sampling, arrival=0.0))
    began = time.perf_counter()
    left, in_flight = len(prompts), list[LaunchedStep]()
    while left:
        plan: StepPlan | None = None
        while len(in_flight) < 2 and (plan := scheduler.schedule(0.0)) is not None:
            in_flight.append(runner.launch(plan))
        updates = scheduler.commit(in_flight.pop(0).result(), 0.0)
        left -= sum(update.finish_reason is not None for update in updates)
    for launched in in_flight:
        launched.result()
    return time.perf_counter() - began


def _transformers(path: Path, prompts: list[list[int]], args: argparse.Namespace) -> float:
    """Its own choice of attention, graphs and sizes; start and capture are not counted, as they are not above."""
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    config = AutoConfig.from_pretrained(path)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    generation = GenerationConfig(max_new_tokens=args.answer, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # On the CPU, which only shows that this script works, not a share of the machine's memory.
    sizes = {"num_blocks": 4 * len(prompts), "max_batch_tokens": 256} if args.device == "cpu" else {}
    session = model.continuous_batching_context_manager(
        generation_config=generation,
        # The second round's prompts are the first's.
        continuous_batching_config=ContinuousBatchingConfig(allow_block_sharing=False, **sizes),
        workload_hints=WorkloadHints(
            max_prompt_length=args.prompt, max_generated_length=args.answer, num_requests=len(prompts)
        ),
    )
    with session as manager:
        print(f"transformers: attention {model.config._attn_implementation}", flush=True)
        return min(_answer(manager, prompts, args.answer) for _ in range(2))


def _answer(manager: ContinuousBatchingManager, prompts: list[list[int]], answer: int) -> float:
    began = time.perf_counter()
    manager.add_requests(inputs=prompts, max_new_tokens=answer)
    left = len(prompts)
    while left:
        found = manager.get_result(timeout=1)
        assert found or manager.is_running(), "transformers' generation thread has ended"
        if found and found.is_finished():
            assert len(found.generated_tokens) == answer, f"an answer of {len(found.generated_tokens)} tokens"
            left -= 1
    return time.perf_counter() - began


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole = [name for name, model in shapes.MODELS.items() if model.tensor_parallel == 1]
    parser.add_argument("model", nargs="?", choices=whole, default="Qwen3-8B", help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
