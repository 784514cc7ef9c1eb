"""`tandem serve`: composes an engine pod, from flags to exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from importlib import metadata
from pathlib import Path
from typing import Protocol

import uvloop
from prometheus_client import disable_created_metrics
from tandem_contract import env
from tandem_contract.flags import ServeFlags
from tandem_tracing.spans import OFF, FinishedSpan, Tracing
from tandem_tracing.start import start

from tandem_runtime.core import logs
from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine.client import EngineClient
from tandem_runtime.engine.messages import EngineStatus, Failed, Progress
from tandem_runtime.engine.process_client import PostControl, ProcessEngineClient
from tandem_runtime.server.app import build_app, build_metrics_app
from tandem_runtime.server.auth import Clients, Tickets
from tandem_runtime.server.exchange import TIMEOUT_GRACE_S
from tandem_runtime.server.handoff import HandoffCaller, TicketGate, build_handoff_app
from tandem_runtime.server.listen import bind, listen
from tandem_runtime.server.pod import LoadedModel, Pod
from tandem_runtime.server.sampling_defaults import NEUTRAL, SamplingDefaults
from tandem_runtime.text.template import check_template
from tandem_runtime.text.tokenizer import Tokenizer, check_presence

logger = logging.getLogger(__name__)

LAST_WORDS_S = 5.0
"""For error events to requests that the drain timeout cut off."""


class PodEngine(EngineClient, Protocol):
    """An engine client that the pod also owns."""

    on_status: Callable[[EngineStatus], None]
    on_spans: Callable[[list[FinishedSpan]], None]
    post_control: PostControl | None

    async def wait_dead(self) -> Failed: ...


def run(flags: ServeFlags) -> int:
    """Serves until SIGTERM or SIGINT; exit status 1 when the engine died. Raises `StartupError`."""
    logs.configure(flags.log_format, flags.log_level)
    disable_created_metrics()  # type: ignore[no-untyped-call]

    async def main() -> int:
        tracing = start(f"tandem-{'serve' if flags.role == 'both' else flags.role}", _pod_name(), os.environ)
        try:
            return await serve_pod(flags, _start_process, _stop_on_signals(), tracing)
        finally:
            await tracing.close()

    return uvloop.run(main())


async def serve_pod(
    flags: ServeFlags,
    start_engine: Callable[[ServeFlags, str], PodEngine],
    stop: asyncio.Event,
    tracing: Tracing = OFF,
) -> int:
    """As `run`, with the caller's engine, until `stop` is set; `tracing` stays the caller's to close."""
    pod = new_pod(flags, tracing)
    async with AsyncExitStack() as stack:
        api, metrics, handoff = _bind_all(flags, stack)
        await listen(build_app(pod), api, stack, take_timeout=flags.request_timeout + TIMEOUT_GRACE_S)
        await listen(build_metrics_app(pod), metrics, stack)
        engine = start_engine(flags, pod.name)
        stack.push_async_callback(engine.close)
        engine.on_status = pod.observe
        engine.on_spans = tracing.record
        if handoff is not None:
            caller = HandoffCaller(lambda: pod.tickets.keys)
            stack.push_async_callback(caller.close)
            engine.post_control = caller.post
        loading = asyncio.create_task(_load(flags, engine))
        if not await _unless(stop, loading):
            return 0
        if handoff is not None:
            gate = TicketGate(lambda: pod.tickets.keys, lambda: engine.info.incarnation)
            await listen(build_handoff_app(engine, gate), handoff, stack)
        _announce(pod, loading.result())
        dying = asyncio.create_task(engine.wait_dead())
        if await _unless(stop, dying):
            logger.error("the engine died: %s", dying.result().message)
            return 1
        await drain(pod)
    return 0


def new_pod(flags: ServeFlags, tracing: Tracing = OFF) -> Pod:
    """Raises `StartupError` for what can be told at once: no such model folder, unusable key files and template."""
    if not Path(flags.model).is_dir():
        raise StartupError(f"--model {flags.model}: no such folder")
    if flags.load_format != "dummy":
        check_presence(flags.model)
    if flags.chat_template is not None:
        check_template(flags.chat_template)
    return Pod(
        name=_pod_name(),
        flags=flags,
        models=flags.served_model_name or (Path(flags.model).resolve().name,),
        clients=Clients.from_file(flags.api_key_file),
        tickets=Tickets.from_file(flags.ticket_key_file),
        started_at=int(time.time()),
        tracing=tracing,
    )


def _pod_name() -> str:
    return os.environ.get(env.POD_NAME) or socket.gethostname()


async def drain(pod: Pod) -> None:
    """Takes no more requests, lets those in flight go on up to the drain timeout, then ends them with an error."""
    pod.draining = True
    logger.info("draining: %d requests in flight", len(pod.in_flight))
    with suppress(TimeoutError):
        async with asyncio.timeout(pod.flags.drain_timeout):
            if pod.in_flight:
                await asyncio.wait(pod.in_flight)
            # The work of a prefill pod comes from its peers, not from requests.
            await pod.engine_idle.wait()
    if pod.in_flight:
        logger.warning("drain timeout: ending %d requests", len(pod.in_flight))
        pod.cut_off = True
        cut_off = list(pod.in_flight)
        for task in cut_off:
            task.cancel()
        await asyncio.wait(cut_off, timeout=LAST_WORDS_S)


async def _load(flags: ServeFlags, engine: PodEngine) -> LoadedModel:
    """Tokenizer and weights at the same time. Raises the `StartupError` of whichever fails first."""
    auto = flags.generation_config == "auto"
    defaults = SamplingDefaults.from_folder(flags.model) if auto else NEUTRAL
    reading = asyncio.to_thread(
        Tokenizer, flags.model, chat_template=flags.chat_template, stand_in=flags.load_format == "dummy"
    )
    tokenizer, _ = await asyncio.gather(reading, engine.wait_ready())
    knows_reasoning = tokenizer.template is not None and tokenizer.template.knows_reasoning
    splits = flags.reasoning_parser == "qwen3" or (flags.reasoning_parser == "auto" and knows_reasoning)
    return LoadedModel(engine, tokenizer, splits_reasoning=splits, defaults=defaults)


def _announce(pod: Pod, loaded: LoadedModel) -> None:
    pod.metrics.info.labels(pod.models[0], pod.flags.role, metadata.version("tandem-serving")).set(1)
    pod.metrics.model_load.set(loaded.info.load_seconds)
    pod.loaded = loaded
    logger.info("serving %s on port %d", ", ".join(pod.models), pod.flags.port)


def _bind_all(flags: ServeFlags, stack: AsyncExitStack) -> tuple[socket.socket, socket.socket, socket.socket | None]:
    """API, metrics and, for pods that hand over, handoff. Raises `StartupError`."""
    api = stack.enter_context(bind(flags.host, flags.port, flag="--port"))
    metrics = stack.enter_context(bind(flags.host, flags.metrics_port, flag="--metrics-port"))
    if flags.role == "both":
        return api, metrics, None
    return api, metrics, stack.enter_context(bind(flags.host, flags.handoff_port, flag="--handoff-port"))


async def _unless(stop: asyncio.Event, task: asyncio.Task[object]) -> bool:
    """Whether `task` ended before `stop` was set; raises its error. Otherwise it is cancelled."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((stopping, task), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        stopping.cancel()
        task.cancel()


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    return stop


def _start_process(flags: ServeFlags, name: str) -> ProcessEngineClient:
    client = ProcessEngineClient(flags, name, on_progress=_log_progress())
    client.start()
    return client


def _log_progress() -> Callable[[Progress], None]:
    """A line for every tenth of the weights."""
    logged = -1

    def log(progress: Progress) -> None:
        nonlocal logged
        tenth = 10 * progress.done // max(1, progress.total)
        if tenth > logged:
            logged = tenth
            logger.info("loading weights: %d%% of %.1f GiB", 10 * tenth, progress.total / 2**30)

    return log
