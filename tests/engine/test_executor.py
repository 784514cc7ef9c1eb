from __future__ import annotations

import queue
import threading

import pytest
from tandem_runtime.core.plan import StepPlan, StepResult
from tandem_runtime.engine.executor import Executor


class ThreadNoting:
    """A runner that notes on which thread it runs; step 3 fails."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def execute(self, plan: StepPlan) -> StepResult:
        self.threads.add(threading.get_ident())
        if plan.step == 3:
            raise ValueError("step 3")
        return StepResult(plan.step, [], {}, {}, 0.0, 0.0)


def test_loading_and_steps_share_one_thread() -> None:
    """Symptom: a decode step took 42 ms in the server and 23 ms alone.

    Cause: the model was loaded on another thread, whose OpenMP workers made libgomp throttle everyone's.
    """
    results: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()
    executor = Executor(results.put)
    runner = ThreadNoting()
    loaded_on = executor.call(threading.get_ident)
    executor.lead(runner)
    for step in (1, 2):
        executor.submit(StepPlan(step, [], []))
    assert [results.get(timeout=5).step for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
    executor.close()
    assert runner.threads == {loaded_on}
    assert loaded_on != threading.get_ident()


def test_what_loading_raises_reaches_the_caller() -> None:
    executor = Executor(lambda result: None)
    with pytest.raises(ZeroDivisionError):
        executor.call(lambda: 1 // 0)
    assert executor.call(lambda: 7) == 7
    executor.close()


def test_a_step_that_fails_ends_the_executor() -> None:
    results: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()
    executor = Executor(results.put)
    executor.lead(ThreadNoting())
    for step in (3, 4):
        executor.submit(StepPlan(step, [], []))
    assert isinstance(results.get(timeout=5), ValueError)
    executor.close()
    assert results.empty()
