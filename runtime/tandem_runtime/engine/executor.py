"""The thread that computes: loads the model, then runs step plans in order, the next one ready when a step ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from tandem_runtime.core.plan import StepPlan, StepResult

Result = TypeVar("Result")


class Runner(Protocol):
    """What computes a step: `execution.ModelRunner`, alone or leading tensor-parallel workers."""

    def execute(self, plan: StepPlan) -> StepResult: ...


class Executor:
    """`on_result` receives each step's result, or the exception that ended the executor, on the executor's thread.

    Everything that computes on the CPU must run here, loading included: OpenMP gives each computing thread workers of
    its own, and libgomp, seeing more than there are cores, makes all of them sleep at every barrier. A step then takes
    twice as long.
    """

    def __init__(self, on_result: Callable[[StepResult | BaseException], None]) -> None:
        self._on_result = on_result
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._runner: Runner | None = None
        # A daemon: a step that hangs in a collective must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], Result]) -> Result:
        """Runs `work` on the executor's thread; returns its result or raises what it raised."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(run)
        return future.result()

    def lead(self, runner: Runner) -> None:
        """To be called before the first `submit`."""
        self._runner = runner

    def submit(self, plan: StepPlan) -> None:
        self._work.put(partial(self._step, plan))

    def close(self) -> None:
        """Returns after the steps already submitted have run."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException as error:
                self._on_result(error)
                return

    def _step(self, plan: StepPlan) -> None:
        assert self._runner is not None, "lead() first"
        self._on_result(self._runner.execute(plan))
