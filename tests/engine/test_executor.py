from __future__ import annotations

import queue
import threading

import pytest
from tandem_runtime.core.plan import StepPlan, StepResult
from tandem_runtime.engine.executor import Executor


class Computed:
    """A step whose device is done with it once `computed` is set."""

    def __init__(self, step: int, computed: threading.Event | None = None) -> None:
        self.done = computed is None
        self._step = step
        self._computed = computed

    def result(self) -> StepResult:
        assert self._computed is None or self._computed.wait(5)
        return StepResult(self._step, [], {}, {}, 0.0, 0.0)


class ThreadNoting:
    """A runner that notes on which thread it runs; step 3 fails."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def launch(self, plan: StepPlan) -> Computed:
        self.threads.add(threading.get_ident())
        if plan.step == 3:
            raise ValueError("step 3")
        return Computed(plan.step)


class Device:
    """A runner whose device computes on its own; step 3 fails there."""

    def __init__(self) -> None:
        self.computed = {step: threading.Event() for step in (1, 2, 3)}
        self.launched: queue.SimpleQueue[int] = queue.SimpleQueue()

    def launch(self, plan: StepPlan) -> Computed:
        self.launched.put(plan.step)
        return FailedOnDevice(plan.step) if plan.step == 3 else Computed(plan.step, self.computed[plan.step])


class FailedOnDevice(Computed):
    def __init__(self, step: int) -> None:
        super().__init__(step, threading.Event())

    def result(self) -> StepResult:
        raise ValueError("step 3")


def test_loading_and_steps_share_one_thread() -> None:
    """Symptom: a decode step took 42 ms in the server and 23 ms alone.

    Cause: the model was loaded on another thread, whose OpenMP workers made libgomp throttle everyone's.
    """
    results: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()
    executor = Executor(results.put)
    runner = ThreadNoting()
    loaded_on = executor.start(threading.get_ident).result(5)
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
        executor.start(lambda: 1 // 0).result(5)
    assert executor.start(lambda: 7).result(5) == 7
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


def test_a_device_gets_its_next_step_while_it_computes() -> None:
    results: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()
    executor = Executor(results.put)
    device = Device()
    executor.lead(device)
    for step in (1, 2):
        executor.submit(StepPlan(step, [], []))
    assert [device.launched.get(timeout=5) for _ in range(2)] == [1, 2]
    assert results.empty()
    device.computed[2].set()
    device.computed[1].set()
    assert [results.get(timeout=5).step for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
    executor.submit(StepPlan(3, [], []))
    assert isinstance(results.get(timeout=5), ValueError)
    executor.close()
