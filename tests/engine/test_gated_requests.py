"""Requests that wait for their grammars are requests that wait: bounded, counted, and ended at their deadline."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.slow_grammars import SlowGrammars, slow_grammars
from tandem_runtime.core.plan import StepPlan, StepResult
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine.loop import Engine
from tandem_runtime.engine.messages import Abort, EngineOutput, EngineRequest, EngineStatus, Outputs
from tandem_runtime.grammar import sources
from tandem_runtime.scheduling import Scheduler, SchedulerConfig

GRAMMAR = sources.combine(sources.of_choices(["a"]))


class Harness:
    """An engine whose steps are planned and computed by nobody."""

    def __init__(self, grammars: SlowGrammars) -> None:
        self.now = 0.0
        self.grammars = grammars
        self.plans: list[StepPlan] = []
        self.outputs: list[EngineOutput] = []
        self.status: EngineStatus | None = None
        config = SchedulerConfig(
            page_size=4, num_pages=24, max_num_seqs=1, max_num_batched_tokens=16, max_prefill_tokens_with_decodes=16,
            max_model_len=80, max_waiting=2, enable_prefix_caching=True, cache_root=b"",
        )  # fmt: skip
        self.engine = Engine(
            name="e0",
            scheduler=Scheduler(config),
            submit=self.plans.append,
            inbox=grammars.inbox,
            publish=self._take,
            grammars=grammars.gate,
            clock=lambda: self.now,
        )

    def _take(self, message: object) -> None:
        if isinstance(message, Outputs):
            self.outputs += message.outputs
        elif isinstance(message, EngineStatus):
            self.status = message

    def ask(self, request_id: str, grammar: str = GRAMMAR, deadline_s: float | None = None, *, after: str = "") -> None:
        sampling = SamplingParams(max_tokens=5, grammar=grammar)
        self.engine.turn(
            EngineRequest(
                request_id=request_id, prompt_token_ids=[1, 2], sampling=sampling, deadline_s=deadline_s, after=after
            )
        )


@pytest.fixture
def harness() -> Iterator[Harness]:
    with slow_grammars(recent=0) as grammars:
        yield Harness(grammars)


def test_they_count_against_the_bound_of_the_queue(harness: Harness) -> None:
    """Symptom: any number of requests waited for grammars, and the pod looked idle to the gateway."""
    harness.ask("first")
    harness.ask("second")
    harness.ask("third")
    harness.ask("plain", grammar="")
    refused = {output.request_id: output.error_code for output in harness.outputs}
    assert refused == {"third": "engine_overloaded", "plain": "engine_overloaded"}
    harness.now = 10.0
    harness.engine.turn(None)
    assert harness.status is not None
    assert (harness.status.waiting, harness.status.waiting_tokens) == (2, 4)
    harness.grammars.slow.set()
    harness.engine.turn(harness.grammars.next_event())
    harness.ask("later", grammar="")
    assert len(harness.outputs) == 2
    assert harness.plans


def test_choices_that_wait_for_the_first_one_count_too(harness: Harness) -> None:
    """Symptom: a request with `n` 128 was one place in the queue, so that a thousand of them were accepted."""
    harness.ask("first", grammar="")
    for request_id in ("second", "third", "fourth"):
        harness.ask(request_id, grammar="", after="first")
    harness.ask("gated")
    refused = {output.request_id: output.error_code for output in harness.outputs}
    assert refused == {"fourth": "engine_overloaded", "gated": "engine_overloaded"}
    harness.now = 10.0
    harness.engine.turn(None)
    assert harness.status is not None
    assert (harness.status.running, harness.status.waiting) == (1, 2)
    harness.engine.turn(Abort("first"))
    assert len(harness.outputs) == 2, "those that were accepted stay so"
    harness.now = 20.0
    harness.engine.turn(None)
    assert harness.status.waiting + harness.status.running == 2


def test_their_deadline_counts_from_receipt(harness: Harness) -> None:
    """Symptom: a request that waited for its grammar knew no deadline, and had all of it again afterwards."""
    harness.ask("short", deadline_s=1.0)
    harness.ask("long", deadline_s=5.0)
    harness.now = 2.0
    harness.engine.turn(None)
    assert [(output.request_id, output.finish_reason) for output in harness.outputs] == [("short", "deadline")]
    assert harness.outputs[0].trace is not None
    assert harness.outputs[0].trace.ttft_seconds == 2.0
    harness.grammars.slow.set()
    harness.engine.turn(harness.grammars.next_event())
    assert [start.slot for plan in harness.plans for start in plan.starts] == [0]
    harness.now = 5.5
    harness.engine.turn(None)
    assert [output.request_id for output in harness.outputs] == ["short", "long"]


def test_a_grammar_is_kept_until_its_last_request_has_ended_in_whatever_way(harness: Harness) -> None:
    def kept() -> bool:
        return harness.grammars.library.find(GRAMMAR) is not None

    def step() -> None:
        """Computes the oldest step that was planned, in which everybody samples token 9."""
        plan = harness.plans.pop(0)
        harness.engine.turn(StepResult(plan.step, [9] * sum(chunk.sample for chunk in plan.chunks), {}, {}, 0.0, 0.0))

    harness.grammars.slow.set()
    harness.ask("finished")
    harness.engine.turn(harness.grammars.next_event())
    harness.ask("aborted")
    harness.ask("overdue", deadline_s=5.0)
    harness.ask("no room")
    assert [output.error_code for output in harness.outputs] == ["engine_overloaded"]
    for _ in range(5):
        step()
    assert [output.finish_reason for output in harness.outputs if output.finish_reason] == ["error", "length"]
    assert kept()
    harness.engine.turn(Abort("aborted"))
    assert kept()
    harness.now = 6.0
    harness.engine.turn(None)
    assert harness.outputs[-1].finish_reason == "deadline"
    assert not kept()
    while harness.plans:
        step()  # of those that have left
    harness.ask("failing")
    harness.engine.turn(harness.grammars.next_event())
    assert kept()
    failing = harness.plans.pop(0)
    harness.engine.turn(StepResult(failing.step, [9], {}, {}, 0.0, 0.0, {0: "too complex"}))
    assert harness.outputs[-1].error_code == "invalid_grammar"
    assert not kept()
