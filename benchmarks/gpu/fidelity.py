"""One checkpoint on the GPU and on the CPU: the same prompts, the distributions compared. Prints JSON lines.

    python benchmarks/gpu/fidelity.py [MODEL_DIR]

Without MODEL_DIR: the demo model, SmolLM2-135M-Instruct, which the first run fetches.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from tandem_contract.flags import ServeFlags
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.local.cache import cache_root
from tandem_runtime.local.demo_model import demo_model
from transformers import AutoTokenizer

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
)
DECODES = 16
TOLERANCE = 0.15
"""Of a bf16 model's log-probabilities among the most likely tokens; two ways to sum differ by about this."""
TOP = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    args = parser.parse_args()
    folder = args.model or demo_model(cache_root(os.environ))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    host = positions(folder, "cpu", prompts, None)
    there = positions(folder, args.device, prompts, [ids for ids, _ in host])
    worst = 0.0
    for text, (ids, expected), (_, found) in zip(PROMPTS, host, there, strict=True):
        differences = [
            abs(found[i][token] - value)
            for i in range(DECODES)
            for token, value in list(expected[i].items())[:TOP]
            if token in found[i]
        ]
        worst = max(worst, max(differences))
        case = {
            "prompt": text.strip(),
            "worst": round(max(differences), 4),
            "mean": round(sum(differences) / len(differences), 5),
        }
        print(json.dumps(case | {"continuation": tokenizer.decode(ids)}), flush=True)
    assert worst <= TOLERANCE, f"log-probabilities differ by {worst:.3f}, more than {TOLERANCE}"


def positions(
    folder: Path, device: str, prompts: list[list[int]], forced: list[list[int]] | None
) -> list[tuple[list[int], list[dict[int, float]]]]:
    """For each prompt the greedy ids (or the forced ones) and each position's log-probabilities by token."""
    runner = ModelRunner(
        ExecutionConfig.from_flags(
            ServeFlags(model=str(folder), device=device, max_model_len=512, kv_cache_memory="1GiB", max_num_seqs=4)  # type: ignore[arg-type]
        )
    )
    runner.load()
    sampling = SamplingParams(max_tokens=1 << 20, temperature=0.0, logprobs=4 * TOP)
    found = []
    for i, prompt in enumerate(prompts):
        start = SlotStart(0, prompt, [], list(range(runner.layout.pages_for(len(prompt) + DECODES))), sampling)
        result = runner.execute(StepPlan(0, [start], [Chunk(0, 0, len(prompt), prompt, [], True)]))
        ids, rows = [], []
        for n in range(DECODES):
            ids.append(forced[i][n] if forced else result.token_ids[0])
            rows.append(dict(result.logprobs[0].top))
            result = runner.execute(StepPlan(0, [], [Chunk(0, len(prompt) + n, 1, ids[-1:], [], True)]))
        found.append((ids, rows))
    del runner
    if device == "cuda":
        torch.cuda.empty_cache()
    return found


if __name__ == "__main__":
    main()
