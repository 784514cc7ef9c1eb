"""Answers of a real scheduler and a real runner, one step ahead of each other as in an engine, in one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Sequences
from dataclasses import dataclass, field

from tandem_runtime.core.plan import StepResult
from tandem_runtime.core.sampling import SamplingParams, TokenLogprobs
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.scheduling import Scheduler, SchedulerConfig, SchedulerCounters, Sequence, SpeculationConfig
from tandem_runtime.scheduling.speculation import NewProposer


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    sampling: SamplingParams
    output: list[int] = field(default_factory=list)
    """Sampled before, elsewhere."""
    after_turn: int = 0
    """When it arrives, in turns of the loop."""


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token_id: int | None = None


def answer_all(
    runner: ModelRunner,
    requests: Sequences[Request],
    *,
    speculation: SpeculationConfig | None = None,
    new_proposer: NewProposer | None = None,
    num_pages: int | None = None,
    max_num_batched_tokens: int = 32,
) -> tuple[list[Answer], SchedulerCounters]:
    config = runner.config
    scheduler = Scheduler(
        SchedulerConfig(
            page_size=config.page_size,
            num_pages=num_pages or runner.num_pages,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_prefill_tokens_with_decodes=max_num_batched_tokens,
            max_model_len=config.max_model_len,
            max_waiting=1000,
            enable_prefix_caching=True,
            cache_root=b"",
            speculation=speculation,
        ),
        new_proposer=new_proposer,
    )
    answers = [Answer() for _ in requests]
    coming = deque(sorted(enumerate(requests), key=lambda item: item[1].after_turn))
    in_flight: deque[StepResult] = deque()
    turn = 0
    while coming or any(answer.finish_reason is None for answer in answers):
        while coming and coming[0][1].after_turn <= turn:
            index, request = coming.popleft()
            scheduler.add(
                Sequence(str(index), request.prompt, request.sampling, arrival=index, output_token_ids=request.output)
            )
        while len(in_flight) < 2 and (plan := scheduler.schedule(0.0)) is not None:
            in_flight.append(runner.execute(plan))
        for update in scheduler.commit(in_flight.popleft(), 0.0) if in_flight else ():
            answer = answers[int(update.request_id)]
            answer.token_ids += update.new_token_ids
            answer.logprobs += update.logprobs or []
            answer.finish_reason, answer.stop_token_id = update.finish_reason, update.stop_token_id
        turn += 1
        scheduler.check_integrity()
    while in_flight:
        scheduler.commit(in_flight.popleft(), 0.0)
    counters = scheduler.counters
    assert counters.pages_used == counters.running == counters.waiting == 0, "pages leaked"
    return answers, counters
