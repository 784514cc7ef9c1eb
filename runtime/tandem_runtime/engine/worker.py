"""The process of a tensor-parallel rank beyond the first: what its leader tells it, and how it obeys.

Transfer commands go to an I/O thread of their own, so that a handoff never waits behind a step.
"""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path

import msgspec
import setproctitle
import zmq

from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.plan import StepPlan
from tandem_runtime.engine import ipc
from tandem_runtime.engine.rank import Listen, Rank
from tandem_runtime.engine.transfers import RankTransfers
from tandem_runtime.execution.parallel import init_group
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.transfer.protocol import ReceiveJob, ReceiveReport, SendJob, SendReport

logger = logging.getLogger(__name__)


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

encode = msgspec.msgpack.Encoder().encode
_decode_to_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


def to_worker_address(folder: Path, rank: int) -> str:
    return f"ipc://{folder}/to-worker-{rank}"


def from_worker_address(folder: Path, rank: int) -> str:
    return f"ipc://{folder}/from-worker-{rank}"


def join(config: ExecutionConfig, rank: int, folder: Path) -> None:
    """Joins the process group of all ranks; a file lets them find each other, whatever ports are free."""
    init_group(rank=rank, world=config.tensor_parallel_size, init_method=f"file://{folder}/ranks", device=config.device)


def worker_main(config: ExecutionConfig, rank: int, folder: Path, listen: Listen | None, parent_pid: int) -> None:
    """`listen`: where this rank receives KV pages, or None for no handoffs."""
    ipc.die_with_parent(parent_pid)
    setproctitle.setproctitle(f"tandem-rank-{rank}")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    commands = ipc.pull(context, to_worker_address(folder, rank))
    reports = ipc.push(context, from_worker_address(folder, rank))
    lock = threading.Lock()

    def tell(message: FromWorker) -> None:
        with lock:
            reports.send(encode(message))

    try:
        tell(WorkerUp())
        join(config, rank, folder)
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
        startup = isinstance(error, StartupError)
        what = str(error) if startup else f"{type(error).__name__}: {error}"
        tell(WorkerFailed(f"rank {rank}: {what}", startup=startup))
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
