"""What speculative decoding makes of the time per output token: the same requests with and without, in turns.

    python benchmarks/speculative_decoding.py MODEL_DIR [--batch 1 8] [--num-speculative-tokens 4] [--rounds 3]

A whole engine (loop, scheduler, executor) in this process, without HTTP. Prints for each workload and batch size the
time per output token on the clock and in CPU seconds (which other programs disturb less), both as medians over the
rounds with the median of the rounds' ratios (below 1: guessing is faster), and which guesses were right. Fails if a
text differs.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from tandem_contract.flags import ServeFlags
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine.executor import Executor
from tandem_runtime.engine.loop import Engine, Event
from tandem_runtime.engine.messages import EngineRequest, Outputs
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.scheduling import Scheduler, SchedulerConfig, SpeculationConfig
from transformers import AutoTokenizer

NAMES = ("Ada", "Grace", "Edsger", "Barbara", "Alan", "Frances", "Donald", "Radia")
CITIES = ("London", "New York", "Rotterdam", "Los Angeles", "Manchester", "Albany", "Stanford", "Boston")
TOPICS = ("the sea", "a letter", "two brothers", "winter", "a clockmaker", "the last train", "a garden", "two thieves")
FUNCTION = """def {name}_{number}(values):
    total = 0
    for value in values:
        total {sign}= value
    return total
"""


class Workload(NamedTuple):
    name: str
    prompts: Sequence[str]
    temperature: float


class Spent(NamedTuple):
    """Seconds; of a run: per output token after the first, mean over its requests."""

    clock: float
    cpu: float


class Run(NamedTuple):
    texts: dict[str, list[int]]
    spent: Spent
    draft_tokens: int
    accepted_tokens: int


def json_list(number: int) -> str:
    rows = range(5)
    return json.dumps(
        [{"id": 100 * number + i, "name": NAMES[(number + i) % 8], "city": CITIES[(3 * number + i) % 8]} for i in rows],
        indent=1,
    )


def code(number: int) -> str:
    names = (("add", "+"), ("subtract", "-"), ("multiply", "*"))
    return "\n".join(FUNCTION.format(name=name, sign=sign, number=number) for name, sign in names)


STORIES = [f"Here is a story about {topic}.\n\n" for topic in TOPICS]
WORKLOADS = (
    Workload("copy of a JSON list, greedy", [f"{json_list(i)}\n\nThe same once more:\n\n" for i in range(8)], 0.0),
    Workload(
        "edit of code, greedy",
        [f"```python\n{code(i)}```\n\nThe same, with `value` called `item`:\n\n```python\n" for i in range(8)],
        0.0,
    ),
    Workload("story, greedy", STORIES, 0.0),
    Workload("story, temperature 0.8", STORIES, 0.8),
)


class Bench:
    """One model for engines with and without guesses, one after the other."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
        self._config = ExecutionConfig.from_flags(
            ServeFlags(
                model=args.model, device="cpu", max_num_seqs=max(args.batch), max_model_len=2048,
                kv_cache_memory="1GiB", cpu_threads=args.threads,
            )
        )  # fmt: skip
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._executor = Executor(lambda result: self._inbox.put(result))
        self._runner = ModelRunner(self._config)
        self._executor.call(self._runner.load)
        self._executor.call(self._runner.warm_up)
        self._executor.lead(self._runner)

    def run(self, load: Workload, batch: int, speculation: SpeculationConfig | None) -> Run:
        scheduler = Scheduler(self._settings(speculation))
        outputs: list[Any] = []

        def publish(message: object) -> None:
            outputs.extend(message.outputs if isinstance(message, Outputs) else ())

        engine = Engine(
            name="bench", scheduler=scheduler, submit=self._executor.submit, inbox=self._inbox, publish=publish
        )
        for index, prompt in enumerate(load.prompts[:batch]):
            sampling = SamplingParams(max_tokens=self._args.tokens, temperature=load.temperature, seed=index)
            token_ids = self._tokenizer.encode(prompt)
            self._inbox.put(EngineRequest(request_id=str(index), prompt_token_ids=token_ids, sampling=sampling))
        texts: dict[str, list[int]] = {}
        first: dict[str, Spent] = {}
        tpots: list[Spent] = []
        while len(tpots) < batch:
            engine.turn(self._inbox.get())
            now = Spent(time.perf_counter(), time.process_time())
            for output in outputs:
                text = texts.setdefault(output.request_id, [])
                text += output.token_ids
                since = first.setdefault(output.request_id, now)
                if output.finish_reason is not None:
                    tpots.append(Spent(*((b - a) / (len(text) - 1) for a, b in zip(since, now, strict=True))))
            outputs.clear()
        spent = Spent(*map(statistics.mean, zip(*tpots, strict=True)))
        counters = scheduler.counters
        return Run(texts, spent, counters.draft_tokens, counters.accepted_tokens)

    def close(self) -> None:
        self._executor.close()

    def _settings(self, speculation: SpeculationConfig | None) -> SchedulerConfig:
        config = self._config
        return SchedulerConfig(
            page_size=config.page_size, num_pages=self._runner.num_pages, max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens, max_model_len=config.max_model_len,
            max_prefill_tokens_with_decodes=config.max_num_batched_tokens, max_waiting=1000,
            enable_prefix_caching=True, cache_root=b"", speculation=speculation,
        )  # fmt: skip


def report(load: Workload, batch: int, rounds: list[tuple[Run, Run]]) -> None:
    line = f"{load.name:28} batch {batch}:"
    for field in Spent._fields:
        pairs = [(getattr(a.spent, field), getattr(b.spent, field)) for a, b in rounds]
        without_ms, with_ms = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        line += f" {field} {without_ms:6.1f} -> {with_ms:6.1f} ms, ratio {ratio:4.2f};"
    guess = rounds[0][1]
    tokens = sum(map(len, guess.texts.values()))
    right = guess.accepted_tokens / max(1, guess.draft_tokens)
    line += f" {guess.draft_tokens / tokens:4.2f} guesses a token, {right:4.0%} right"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--num-speculative-tokens", type=int, default=4)
    parser.add_argument("--prompt-lookup-min", type=int, default=2)
    parser.add_argument("--prompt-lookup-max", type=int, default=4)
    args = parser.parse_args()
    guessing = SpeculationConfig(
        num_tokens=args.num_speculative_tokens,
        lookup_min=args.prompt_lookup_min,
        lookup_max=args.prompt_lookup_max,
        max_batch=max(args.batch),
    )
    bench = Bench(args)
    for load in WORKLOADS:
        for batch in args.batch:
            rounds = [(bench.run(load, batch, None), bench.run(load, batch, guessing)) for _ in range(args.rounds)]
            assert all(without.texts == guessed.texts for without, guessed in rounds), "guesses changed a text"
            report(load, batch, rounds)
    bench.close()


if __name__ == "__main__":
    main()
