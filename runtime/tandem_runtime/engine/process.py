"""The engine process: wires one engine together, says when it is ready, and runs it until told to stop."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import setproctitle
import zmq
from tandem_contract.env import POD_IP
from tandem_contract.flags import ServeFlags

from tandem_runtime.core import logs
from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine import ipc
from tandem_runtime.engine.assembly import EngineConfig, assemble
from tandem_runtime.engine.client import EngineInfo
from tandem_runtime.engine.constraints import Constraining
from tandem_runtime.engine.executor import Executor
from tandem_runtime.engine.leader import LeadingRunner, Worker, cause, lead
from tandem_runtime.engine.leases import TimerThread
from tandem_runtime.engine.loop import Event
from tandem_runtime.engine.messages import Choices, Failed, Progress
from tandem_runtime.engine.rank import Listen, Rank
from tandem_runtime.engine.worker import join
from tandem_runtime.execution.fingerprint import arithmetic, fingerprint
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.scheduling import SchedulerConfig, SpeculationConfig

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 0.1


def engine_main(flags: ServeFlags, name: str, folder: Path, parent_pid: int) -> None:
    """Entry point of the process; `folder` holds the sockets."""
    ipc.die_with_parent(parent_pid)
    setproctitle.setproctitle("tandem-engine")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the API process decides
    logs.configure(flags.log_format, flags.log_level)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    outbound = ipc.push(context, ipc.from_engine_address(folder))
    try:
        _serve(flags, name, folder, context, outbound)
    except StartupError as error:
        outbound.send(ipc.encode(Failed(str(error))))
        raise SystemExit(1) from None
    except BaseException as error:
        logger.exception("the engine failed")
        outbound.send(ipc.encode(Failed(f"{type(error).__name__}: {error}")))
        raise SystemExit(1) from None
    finally:
        outbound.close(linger=200)
        context.term()


def advertised_url(flags: ServeFlags) -> str:
    """Where peers reach this pod's handoff control port."""
    listening = "127.0.0.1" if flags.host in ("0.0.0.0", "::") else flags.host
    host = flags.advertise_host or os.environ.get(POD_IP) or listening
    return f"http://[{host}]:{flags.handoff_port}" if ":" in host else f"http://{host}:{flags.handoff_port}"


def _serve(
    flags: ServeFlags,
    name: str,
    folder: Path,
    context: zmq.Context[zmq.Socket[bytes]],
    outbound: zmq.Socket[bytes],
) -> None:
    def publish(message: ipc.FromEngine) -> None:
        outbound.send(ipc.encode(message))

    started = time.monotonic()
    config = ExecutionConfig.from_flags(flags)
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    workers = [
        Worker(config, rank, folder, _listen_at(flags, rank, folder), on_report=inbox.put, on_death=inbox.put)
        for rank in range(1, config.tensor_parallel_size)
    ]
    deaths = [worker.death for worker in workers]
    for worker in workers:
        worker.wait_up()
    # A prefill pod never samples.
    constraining = None if flags.role == "prefill" else Constraining(config, inbox.put)
    executor = Executor(inbox.put)

    def load() -> Rank:
        if workers:
            join(config, 0, folder)
        return Rank.load(
            config,
            0,
            listen=_listen_at(flags, 0, folder),
            on_report=inbox.put,
            on_load=_Reporter(publish).report,
            constraints=constraining.table if constraining else None,
        )

    leader = lead(executor.start(load), deaths)
    if constraining is not None:
        constraining.wait()
    num_pages = min([leader.runner.num_pages, *(worker.wait_ready() for worker in workers)])
    executor.lead(LeadingRunner(leader.runner, workers) if workers else leader.runner)
    timers = TimerThread(inbox.put)
    engine_config = _engine_config(flags, name, config, num_pages)
    engine = assemble(
        engine_config,
        ranks=[leader.transfers, *workers] if leader.transfers is not None else [],
        timers=timers,
        submit=executor.submit,
        inbox=inbox,
        publish=publish,
        grammars=constraining.gate if constraining else None,
    ).engine
    threading.Thread(target=hear, args=(context, folder, inbox), name="inbox", daemon=True).start()
    load_seconds = time.monotonic() - started
    logger.info(
        "model %s ready in %.1f s: %d KV pages of %d tokens, tensor parallel %d",
        flags.model, load_seconds, num_pages, config.page_size, config.tensor_parallel_size,
    )  # fmt: skip
    engine.report()  # first, so that a pod that is ready has KV pages to tell of
    publish(_info(engine_config, config, load_seconds))
    try:
        engine.run()
        executor.close()
    except Exception as error:
        raise cause(error, deaths) from error
    finally:
        timers.close()
        if constraining is not None:
            constraining.close()
        leader.close()
        for worker in workers:
            worker.close()


def _engine_config(flags: ServeFlags, name: str, config: ExecutionConfig, num_pages: int) -> EngineConfig:
    layout = fingerprint(config)
    return EngineConfig(
        name=name,
        role=flags.role,
        url=advertised_url(flags),
        incarnation=secrets.token_hex(8),
        fingerprint=layout,
        scheduler=SchedulerConfig(
            page_size=config.page_size,
            num_pages=num_pages,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_prefill_tokens_with_decodes=flags.max_prefill_tokens_with_decodes,
            max_model_len=config.max_model_len,
            max_waiting=flags.max_waiting,
            enable_prefix_caching=flags.enable_prefix_caching,
            cache_root=bytes.fromhex(layout.digest()),
            speculation=_speculation(flags),
        ),
        vocab_size=config.model.vocab_size,
        handoff_lease_s=flags.handoff_lease_seconds,
        local_prefill_max_tokens=flags.local_prefill_max_tokens,
    )


def _info(engine: EngineConfig, config: ExecutionConfig, load_seconds: float) -> EngineInfo:
    return EngineInfo(
        fingerprint=engine.fingerprint,
        arithmetic=arithmetic(config),
        max_model_len=engine.scheduler.context,
        page_size=engine.scheduler.page_size,
        num_pages=engine.scheduler.num_pages,
        max_waiting=engine.scheduler.max_waiting,
        vocab_size=engine.vocab_size,
        eos_token_ids=config.model.eos_token_ids,
        load_seconds=load_seconds,
        incarnation=engine.incarnation,
    )


def _speculation(flags: ServeFlags) -> SpeculationConfig | None:
    if flags.speculative_method == "none":
        return None
    return SpeculationConfig(
        num_tokens=flags.num_speculative_tokens,
        lookup_min=flags.prompt_lookup_min,
        lookup_max=flags.prompt_lookup_max,
        max_batch=flags.speculative_disable_by_batch_size,
    )


def _listen_at(flags: ServeFlags, rank: int, folder: Path) -> Listen | None:
    """Where a rank receives KV pages; None for a pod that takes no part in handoffs."""
    if flags.role == "both":
        return None
    port = flags.kv_data_port + rank if flags.kv_data_port else 0
    ipc = flags.kv_transport == "ipc"
    return Listen(
        host=flags.host,
        port=port,
        nixl=flags.kv_transport == "nixl",
        ipc_path=f"{folder}/kv-{rank}" if ipc and flags.role == "decode" else "",
        shares=ipc and flags.role == "prefill",
    )


def hear(context: zmq.Context[zmq.Socket[bytes]], folder: Path, inbox: queue.SimpleQueue[Event]) -> None:
    """Puts what the API process says into `inbox`, until the context ends."""
    socket = ipc.pull(context, ipc.to_engine_address(folder))
    try:
        while True:
            message = ipc.decode_to_engine(socket.recv())
            for event in message.requests() if isinstance(message, Choices) else [message]:
                inbox.put(event)
    except zmq.ContextTerminated:
        pass
    except Exception as error:
        # A deaf engine would look as if it worked: let it end.
        inbox.put(error)
    finally:
        socket.close(0)


class _Reporter:
    """Passes on load progress, not more often than a person could see."""

    def __init__(self, publish: Callable[[Progress], None]) -> None:
        self._publish = publish
        self._next = 0.0

    def report(self, done: int, total: int) -> None:
        if done >= total or time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_INTERVAL_S
            self._publish(Progress(done=done, total=total))
