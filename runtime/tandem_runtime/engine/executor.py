"""The thread that computes: loads the model, then launches step plans in order, the next one ready when a step ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from tandem_runtime.core.plan import StepPlan, StepResult

Result = TypeVar("Result")


class Launched(Protocol):
    """A step that its device computes, or has computed."""

    @property
    def done(self) -> bool:
        """Whether `result` returns at once."""

    def result(self) -> StepResult:
        """Waits for the device."""


class Runner(Protocol):
    """What computes steps: `execution.ModelRunner`, alone or leading tensor-parallel workers."""

    def launch(self, plan: StepPlan) -> Launched: ...


class Executor:
    """`on_result` receives each step's result in order, or the exception that ended the executor, on its threads.

    A device with a queue of its own (CUDA) gets the next step while it computes: a second thread waits for results.

    Everything that computes on the CPU must run here, loading included: OpenMP gives each computing thread workers of
    its own, and libgomp, seeing more than there are cores, makes all of them sleep at every barrier. A step then takes
    twice as long.
    """

    def __init__(self, on_result: Callable[[StepResult | BaseException], None]) -> None:
        self._on_result = on_result
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._launched: queue.SimpleQueue[Launched | None] = queue.SimpleQueue()
        self._runner: Runner | None = None
        # A daemon: a step that hangs in a collective must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._collector = threading.Thread(target=self._collect, name="results", daemon=True)
        self._thread.start()
        self._collector.start()

    def start(self, work: Callable[[], Result]) -> Future[Result]:
        """Runs `work` on the executor's thread."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(run)
        return future

    def lead(self, runner: Runner) -> None:
        """To be called before the first `submit`."""
        self._runner = runner

    def submit(self, plan: StepPlan) -> None:
        self._work.put(partial(self._step, plan))

    def close(self) -> None:
        """Returns after the steps already submitted have run."""
        self._work.put(None)
        self._thread.join()
        self._launched.put(None)
        self._collector.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException as error:
                self._on_result(error)
                return

    def _step(self, plan: StepPlan) -> None:
        assert self._runner is not None, "lead() first"
        launched = self._runner.launch(plan)
        if launched.done:
            self._on_result(launched.result())
        else:
            self._launched.put(launched)

    def _collect(self) -> None:
        while (launched := self._launched.get()) is not None:
            try:
                self._on_result(launched.result())
            except BaseException as error:
                self._on_result(error)
                return
