"""The engine process: wires one engine together, says when it is ready, and runs it until told to stop."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import signal
import threading
import time
from pathlib import Path

import setproctitle
import zmq
from tandem_contract.env import POD_IP
from tandem_contract.flags import ServeFlags

from tandem_runtime.core import logs
from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine import ipc
from tandem_runtime.engine.client import EngineInfo
from tandem_runtime.engine.constraints import Constraining
from tandem_runtime.engine.control import ControlPlane
from tandem_runtime.engine.executor import Executor, Runner
from tandem_runtime.engine.handoff_decode import DecodeHandoffs
from tandem_runtime.engine.handoff_parts import HandoffParts
from tandem_runtime.engine.handoff_prefill import PrefillHandoffs
from tandem_runtime.engine.leases import TimerThread
from tandem_runtime.engine.loop import Engine, Event
from tandem_runtime.engine.messages import Choices, Failed, Progress, Spans
from tandem_runtime.engine.rank import Listen, Rank
from tandem_runtime.engine.transfers import TransferGroup
from tandem_runtime.engine.worker import LeadingRunner, Worker, rendezvous
from tandem_runtime.execution.fingerprint import fingerprint
from tandem_runtime.execution.parallel import init_group
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.scheduling import Scheduler, SchedulerConfig, SpeculationConfig

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
        outbound.send(ipc.encode(Failed(str(error), startup=True)))
        raise SystemExit(1) from None
    except BaseException as error:
        logger.exception("the engine failed")
        outbound.send(ipc.encode(Failed(f"{type(error).__name__}: {error}", startup=False)))
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
    started = time.monotonic()
    config = ExecutionConfig.from_flags(flags)
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    world = config.tensor_parallel_size
    workers = [
        Worker(config, rank, folder, _listen_at(flags, rank), on_report=inbox.put, on_death=inbox.put)
        for rank in range(1, world)
    ]
    for worker in workers:
        worker.wait_up()
    if world > 1:
        init_group(rank=0, world=world, init_method=rendezvous(folder), device=config.device)
    # A prefill pod never samples.
    constraining = None if flags.role == "prefill" else Constraining(config, inbox.put)
    executor = Executor(inbox.put)
    leader = executor.call(
        lambda: Rank.load(
            config,
            0,
            listen=_listen_at(flags, 0),
            on_report=inbox.put,
            on_load=_Reporter(outbound).report,
            constraints=constraining.table if constraining else None,
        )
    )
    if constraining is not None:
        constraining.wait()
    num_pages = min([leader.runner.num_pages, *(worker.wait_ready() for worker in workers)])
    incarnation = secrets.token_hex(8)
    layout_fingerprint = fingerprint(config)
    scheduler = Scheduler(
        SchedulerConfig(
            page_size=config.page_size,
            num_pages=num_pages,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_prefill_tokens_with_decodes=flags.max_prefill_tokens_with_decodes or config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
            max_waiting=flags.max_waiting,
            enable_prefix_caching=flags.enable_prefix_caching,
            cache_root=bytes.fromhex(layout_fingerprint.digest()),
            speculation=_speculation(flags),
        )
    )
    runner: Runner = LeadingRunner(leader.runner, workers) if workers else leader.runner
    executor.lead(runner)
    control = ControlPlane(publish=lambda message: outbound.send(ipc.encode(message)))
    timers = TimerThread(inbox.put)
    transfers = decode_handoffs = prefill_handoffs = None
    if leader.transfers is not None:
        transfers = TransferGroup(
            [leader.transfers, *workers],
            on_received=lambda report: decode_handoffs.on_received(report) if decode_handoffs else None,
            on_sent=lambda report: prefill_handoffs.on_sent(report) if prefill_handoffs else None,
        )
        parts = HandoffParts(
            scheduler=scheduler,
            transfers=transfers,
            control=control,
            timers=timers,
            fingerprint=layout_fingerprint,
            incarnation=incarnation,
            on_spans=lambda spans: outbound.send(ipc.encode(Spans(spans))),
        )
        if flags.role == "decode":
            decode_handoffs = DecodeHandoffs(parts, url=advertised_url(flags))
        else:
            prefill_handoffs = PrefillHandoffs(
                parts,
                name=name,
                vocab_size=config.model.vocab_size,
                lease_s=flags.handoff_lease_seconds,
                token_horizon=2 * config.max_num_batched_tokens,
            )
    engine = Engine(
        name=name,
        scheduler=scheduler,
        submit=executor.submit,
        inbox=inbox,
        publish=lambda message: outbound.send(ipc.encode(message)),
        grammars=constraining.gate if constraining else None,
        transfers=transfers,
        control=control,
        decode_handoffs=decode_handoffs,
        prefill_handoffs=prefill_handoffs,
        local_prefill_max_tokens=flags.local_prefill_max_tokens,
    )
    threading.Thread(target=_listen, args=(context, folder, inbox), name="inbox", daemon=True).start()
    load_seconds = time.monotonic() - started
    logger.info(
        "model %s ready in %.1f s: %d KV pages of %d tokens, tensor parallel %d",
        flags.model, load_seconds, num_pages, config.page_size, world,
    )  # fmt: skip
    outbound.send(
        ipc.encode(
            EngineInfo(
                fingerprint=layout_fingerprint,
                max_model_len=min(config.max_model_len, num_pages * config.page_size),
                page_size=config.page_size,
                num_pages=num_pages,
                max_waiting=flags.max_waiting,
                vocab_size=config.model.vocab_size,
                eos_token_ids=config.model.eos_token_ids,
                load_seconds=load_seconds,
                incarnation=incarnation,
            )
        )
    )
    try:
        engine.run()
        executor.close()
    finally:
        timers.close()
        if constraining is not None:
            constraining.close()
        leader.close()
        for worker in workers:
            worker.close()


def _speculation(flags: ServeFlags) -> SpeculationConfig | None:
    if flags.speculative_method == "none":
        return None
    return SpeculationConfig(
        num_tokens=flags.num_speculative_tokens,
        lookup_min=flags.prompt_lookup_min,
        lookup_max=flags.prompt_lookup_max,
        max_batch=flags.speculative_disable_by_batch_size,
    )


def _listen_at(flags: ServeFlags, rank: int) -> Listen | None:
    """Where a rank receives KV pages; None for a pod that takes no part in handoffs."""
    if flags.role == "both":
        return None
    port = flags.kv_data_port + rank if flags.kv_data_port else 0
    return Listen(flags.host, port, [] if flags.kv_transport == "tcp" else [flags.kv_transport])


def _listen(context: zmq.Context[zmq.Socket[bytes]], folder: Path, inbox: queue.SimpleQueue[Event]) -> None:
    socket = ipc.pull(context, ipc.to_engine_address(folder))
    try:
        while True:
            message = ipc.decode_to_engine(socket.recv())
            for event in message.requests() if isinstance(message, Choices) else [message]:
                inbox.put(event)
    except zmq.ContextTerminated:
        socket.close(0)


class _Reporter:
    """Passes on load progress, not more often than a person could see."""

    def __init__(self, outbound: zmq.Socket[bytes]) -> None:
        self._outbound = outbound
        self._next = 0.0

    def report(self, done: int, total: int) -> None:
        if done >= total or time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_INTERVAL_S
            self._outbound.send(ipc.encode(Progress(done=done, total=total)))
