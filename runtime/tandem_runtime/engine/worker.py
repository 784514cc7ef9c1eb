"""Tensor-parallel ranks beyond the first: one process each, led by the engine process.

The leader sends every plan to every worker and runs it itself; transfer commands go to a worker's own I/O thread, so
that a handoff never waits behind a step. A worker that ends takes the engine with it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import setproctitle
import zmq

from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.plan import StepPlan
from tandem_runtime.engine import ipc
from tandem_runtime.engine.executor import Launched, Runner
from tandem_runtime.engine.rank import Listen, Rank
from tandem_runtime.engine.transfers import RankTransfers
from tandem_runtime.execution.parallel import init_group
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.transfer.protocol import ReceiveJob, ReceiveReport, SendJob, SendReport

logger = logging.getLogger(__name__)

EXIT_GRACE_S = 3.0


class Run(msgspec.Struct, frozen=True, tag=True):
    plan: StepPlan


class OpenReceive(msgspec.Struct, frozen=True, tag=True):
    job: ReceiveJob


class CloseReceive(msgspec.Struct, frozen=True, tag=True):
    job_id: str
    reason: str


class OpenSend(msgspec.Struct, frozen=True, tag=True):
    job: SendJob


class Send(msgspec.Struct, frozen=True, tag=True):
    job_id: str
    first_index: int
    page_ids: list[int]


class FinishSend(msgspec.Struct, frozen=True, tag=True):
    job_id: str


class AbortSend(msgspec.Struct, frozen=True, tag=True):
    job_id: str
    reason: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    pass


class WorkerUp(msgspec.Struct, frozen=True, tag=True):
    """The process runs and is about to join the ranks."""


class WorkerReady(msgspec.Struct, frozen=True, tag=True):
    num_pages: int
    data_port: int | None


class WorkerFailed(msgspec.Struct, frozen=True, tag=True):
    message: str
    startup: bool


class Received(msgspec.Struct, frozen=True, tag=True):
    report: ReceiveReport


class Sent(msgspec.Struct, frozen=True, tag=True):
    report: SendReport


ToWorker = Run | OpenReceive | CloseReceive | OpenSend | Send | FinishSend | AbortSend | Stop
FromWorker = WorkerUp | WorkerReady | WorkerFailed | Received | Sent

_encode = msgspec.msgpack.Encoder().encode
_decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
_decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def _to_worker(folder: Path, rank: int) -> str:
    return f"ipc://{folder}/to-worker-{rank}"


def _from_worker(folder: Path, rank: int) -> str:
    return f"ipc://{folder}/from-worker-{rank}"


def rendezvous(folder: Path) -> str:
    """Where the ranks of a process group find each other, whatever ports are free."""
    return f"file://{folder}/ranks"


def worker_main(config: ExecutionConfig, rank: int, folder: Path, listen: Listen | None, parent_pid: int) -> None:
    """`listen`: where this rank receives KV pages, or None for no handoffs."""
    ipc.die_with_parent(parent_pid)
    setproctitle.setproctitle(f"tandem-rank-{rank}")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    commands = ipc.pull(context, _to_worker(folder, rank))
    reports = ipc.push(context, _from_worker(folder, rank))
    lock = threading.Lock()

    def tell(message: FromWorker) -> None:
        with lock:
            reports.send(_encode(message))

    try:
        tell(WorkerUp())
        init_group(rank=rank, world=config.tensor_parallel_size, init_method=rendezvous(folder), device=config.device)
        loaded = Rank.load(
            config,
            rank,
            listen=listen,
            on_report=lambda report: tell(Received(report) if isinstance(report, ReceiveReport) else Sent(report)),
        )
        tell(WorkerReady(loaded.runner.num_pages, loaded.transfers.data_port if loaded.transfers else None))
        plans: queue.SimpleQueue[StepPlan | Exception | None] = queue.SimpleQueue()
        threading.Thread(target=_obey, args=(commands, loaded.transfers, plans), name="commands", daemon=True).start()
        while (plan := plans.get()) is not None:
            if isinstance(plan, Exception):
                raise plan
            loaded.runner.launch(plan)
        loaded.close()
    except BaseException as error:
        logger.exception("rank %d failed", rank)
        tell(WorkerFailed(f"rank {rank}: {error}", startup=isinstance(error, StartupError)))
    finally:
        reports.close(linger=200)


def _obey(
    commands: zmq.Socket[bytes], transfers: RankTransfers | None, plans: queue.SimpleQueue[StepPlan | Exception | None]
) -> None:
    """Until told to stop; an error ends the rank, and with it the pod, rather than this thread alone."""
    try:
        _obey_each(commands, transfers, plans)
        plans.put(None)
    except Exception as error:
        plans.put(error)
    finally:
        commands.close(0)


def _obey_each(
    commands: zmq.Socket[bytes], transfers: RankTransfers | None, plans: queue.SimpleQueue[StepPlan | Exception | None]
) -> None:
    while True:
        command = _decode_to_worker(commands.recv())
        if isinstance(command, Run):
            plans.put(command.plan)
            continue
        if isinstance(command, Stop):
            return
        assert transfers is not None, "a pod without handoffs gets no transfer commands"
        match command:
            case OpenReceive(job):
                transfers.open_receive(job)
            case CloseReceive(job_id, reason):
                transfers.close_receive(job_id, reason)
            case OpenSend(send_job):
                transfers.open_send(send_job)
            case Send(job_id, first_index, page_ids):
                transfers.send(job_id, first_index, page_ids)
            case FinishSend(job_id):
                transfers.finish_send(job_id)
            case AbortSend(job_id, reason):
                transfers.abort_send(job_id, reason)


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
        self._transports = listen.transports if listen else []
        self._on_report = on_report
        self._on_death = on_death
        self._starting: queue.SimpleQueue[WorkerUp | WorkerReady | BaseException] = queue.SimpleQueue()
        self._data_port: int | None = None
        self._closing = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._reports = ipc.pull(self._context, _from_worker(folder, rank))
        self._commands = ipc.push(self._context, _to_worker(folder, rank))
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

    @property
    def transports(self) -> list[str]:
        return self._transports

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
            self._commands.send(_encode(command))

    def _listen(self) -> None:
        poller = zmq.Poller()
        poller.register(self._reports, zmq.POLLIN)
        poller.register(self._process.sentinel, zmq.POLLIN)
        while True:
            events = dict(poller.poll())
            if self._reports in events:
                self._on_message(_decode_from_worker(self._reports.recv()))
            elif self._process.sentinel in events:
                self._on_end(StartupError(f"rank {self._rank} ended with status {self._process.exitcode}"))
                return

    def _on_message(self, message: FromWorker) -> None:
        match message:
            case WorkerUp() | WorkerReady():
                self._starting.put(message)
            case WorkerFailed():
                self._on_end(StartupError(message.message) if message.startup else RuntimeError(message.message))
            case Received(report) | Sent(report):
                self._on_report(report)

    def _on_end(self, error: BaseException) -> None:
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
