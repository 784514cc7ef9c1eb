"""Feeds step plans to the model on a thread of its own, in order, so that the next one is ready when a step ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol

from tandem_runtime.core.plan import StepPlan, StepResult


class Runner(Protocol):
    """What computes a step: `execution.ModelRunner`, alone or leading tensor-parallel workers."""

    def execute(self, plan: StepPlan) -> StepResult: ...


class Executor:
    """`on_result` receives each step's result, or the exception that ended the executor, on the executor's thread."""

    def __init__(self, runner: Runner, on_result: Callable[[StepResult | BaseException], None]) -> None:
        self._runner = runner
        self._on_result = on_result
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()

    def submit(self, plan: StepPlan) -> None:
        self._plans.put(plan)

    def close(self) -> None:
        """Returns after the steps already submitted have run."""
        self._plans.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (plan := self._plans.get()) is not None:
            try:
                result = self._runner.execute(plan)
            except BaseException as error:
                self._on_result(error)
                return
            self._on_result(result)
