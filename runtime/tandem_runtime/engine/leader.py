"""Rank 0's side of tensor parallelism: it starts a process for each other rank and sends it every plan it runs itself.

A rank that ends takes the engine with it, and says why in its own words: what rank 0 hears of it in a collective is
only that a connection was closed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.plan import StepPlan
from tandem_runtime.engine import ipc
from tandem_runtime.engine.executor import Launched, Runner
from tandem_runtime.engine.rank import Listen
from tandem_runtime.engine.worker import (
    AbortSend,
    CloseReceive,
    FinishSend,
    FromWorker,
    OpenReceive,
    OpenSend,
    Received,
    Run,
    Send,
    Sent,
    Stop,
    ToWorker,
    WorkerFailed,
    WorkerReady,
    WorkerUp,
    decode_from_worker,
    encode,
    from_worker_address,
    to_worker_address,
    worker_main,
)
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.transfer.protocol import NIXL, ReceiveJob, ReceiveReport, SendJob, SendReport

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

EXIT_GRACE_S = 3.0
LAST_WORDS_S = 1.0
"""How long a rank that others have lost may take to say why."""


Death = Future[BaseException]
"""Of another rank: what ended it, once something has."""


def lead(work: Future[Result], deaths: Sequence[Death]) -> Result:
    """The result of rank 0's part in what all ranks do together; raises what ended the first of them."""
    ends: list[Future[Any]] = [work, *deaths]
    wait(ends, return_when=FIRST_COMPLETED)
    if not work.done():
        raise cause(None, deaths)
    if (error := work.exception()) is not None:
        raise cause(error, deaths)
    return work.result()


def cause(error: BaseException | None, deaths: Sequence[Death]) -> BaseException:
    """`error` ended rank 0's part, or nothing has yet: returns what is to blame, which may be another rank's end.

    Of several ranks that ended, the one that names its own fault; the others only lost their peer.
    """
    if isinstance(error, StartupError):
        return error
    ended, _ = wait(deaths, LAST_WORDS_S)
    found = sorted((death.result() for death in ended), key=lambda death: not isinstance(death, StartupError))
    blamed = found[0] if found else error
    assert blamed is not None, "something has ended"
    return blamed


class Worker:
    """The leader's handle of one worker process; also its rank's `RankTransfers`."""

    def __init__(
        self,
        config: ExecutionConfig,
        rank: int,
        folder: Path,
        listen: Listen | None,
        on_report: Callable[[ReceiveReport | SendReport], None],
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._rank = rank
        self.transports = [NIXL] if listen and listen.nixl else []
        self.ipc_path = listen.ipc_path if listen else ""
        self._on_report = on_report
        self._on_death = on_death
        self._starting: queue.SimpleQueue[WorkerUp | WorkerReady | BaseException] = queue.SimpleQueue()
        self.death: Death = Future()
        self._data_port: int | None = None
        self._closing = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reports = ipc.pull(self._context, from_worker_address(folder, rank))
        self._commands = ipc.push(self._context, to_worker_address(folder, rank))
        self._lock = threading.Lock()
        # A daemon: a leader that cannot start must not wait for ranks that wait for it.
        self._process = multiprocessing.get_context("spawn").Process(
            target=worker_main,
            args=(config, rank, folder, listen, os.getpid()),
            name=f"tandem-rank-{rank}",
            daemon=True,
        )
        self._process.start()
        threading.Thread(target=self._listen, name=f"rank-{rank}", daemon=True).start()

    def wait_up(self) -> None:
        """Before the leader joins the ranks, where it could not notice that this one is gone. Raises what ended it."""
        up = self._starting.get()
        if isinstance(up, BaseException):
            raise up

    def wait_ready(self) -> int:
        """The worker's number of KV pages; raises what ended it."""
        ready = self._starting.get()
        if isinstance(ready, BaseException):
            raise ready
        assert isinstance(ready, WorkerReady)
        self._data_port = ready.data_port
        return ready.num_pages

    @property
    def data_port(self) -> int:
        assert self._data_port is not None
        return self._data_port

    def run(self, plan: StepPlan) -> None:
        self._tell(Run(plan))

    def open_receive(self, job: ReceiveJob) -> None:
        self._tell(OpenReceive(job))

    def close_receive(self, job_id: str, reason: str) -> None:
        self._tell(CloseReceive(job_id, reason))

    def open_send(self, job: SendJob) -> None:
        self._tell(OpenSend(job))

    def send(self, job_id: str, first_index: int, page_ids: list[int]) -> None:
        self._tell(Send(job_id, first_index, page_ids))

    def finish_send(self, job_id: str) -> None:
        self._tell(FinishSend(job_id))

    def abort_send(self, job_id: str, reason: str) -> None:
        self._tell(AbortSend(job_id, reason))

    def close(self) -> None:
        self._closing = True
        self._tell(Stop())
        self._process.join(EXIT_GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _tell(self, command: ToWorker) -> None:
        # The executor thread sends plans, the engine's thread transfer commands.
        with self._lock:
            self._commands.send(encode(command))

    def _listen(self) -> None:
        poller = zmq.Poller()
        poller.register(self._reports, zmq.POLLIN)
        poller.register(self._process.sentinel, zmq.POLLIN)
        try:
            while True:
                events = dict(poller.poll())
                if self._reports in events:
                    self._on_message(decode_from_worker(self._reports.recv()))
                elif self._process.sentinel in events:
                    # Its pipes close a little before it has a status.
                    self._process.join(EXIT_GRACE_S)
                    self._on_end(StartupError(f"rank {self._rank} ended with status {self._process.exitcode}"))
                    return
        except msgspec.DecodeError as error:
            self._on_end(StartupError(f"rank {self._rank} sent a message that cannot be read: {error}"))

    def _on_message(self, message: FromWorker) -> None:
        match message:
            case WorkerUp() | WorkerReady():
                self._starting.put(message)
            case WorkerFailed():
                self._on_end(StartupError(message.message) if message.startup else RuntimeError(message.message))
            case Received(report) | Sent(report):
                self._on_report(report)

    def _on_end(self, error: BaseException) -> None:
        if self.death.done():
            return
        self.death.set_result(error)
        self._starting.put(error)
        if not self._closing:
            self._on_death(error)


class LeadingRunner:
    """Rank 0's runner, with the workers in step: collectives inside the model keep them together."""

    def __init__(self, runner: Runner, workers: list[Worker]) -> None:
        self._runner = runner
        self._workers = workers

    def launch(self, plan: StepPlan) -> Launched:
        for worker in self._workers:
            worker.run(plan)
        return self._runner.launch(plan)
