"""The engine client of the API process: starts the engine process and speaks to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import zmq
import zmq.asyncio
from tandem_contract.flags import ServeFlags
from tandem_tracing.spans import FinishedSpan

from tandem_runtime.core.errors import (
    EngineDeadError,
    GrammarError,
    OverloadedError,
    PromptTooLongError,
    RequestError,
    StartupError,
)
from tandem_runtime.engine import entry, ipc
from tandem_runtime.engine.client import EngineInfo
from tandem_runtime.engine.messages import (
    HEARTBEAT_S,
    Abort,
    Choices,
    ControlCall,
    ControlReply,
    EngineOutput,
    EngineRequest,
    EngineStatus,
    Failed,
    Outputs,
    Progress,
    Shutdown,
    Spans,
)
from tandem_runtime.engine.private_folder import PrivateFolder

logger = logging.getLogger(__name__)

CONTROL_TIMEOUT_S = 5.0
EXIT_GRACE_S = 5.0
LAST_WORDS_MS = 20
SILENT_BEATS_TO_FROZEN = 5
"""Heartbeats missed in a row (`HEARTBEAT_S`), after which the engine is taken for frozen."""

PostControl = Callable[[ControlCall], Awaitable[tuple[int, bytes]]]
OnProgress = Callable[[Progress], None]
EngineMain = Callable[[ServeFlags, str, Path, int], None]

_REFUSALS: dict[str, type[RequestError]] = {
    str(error.code): error for error in (GrammarError, OverloadedError, PromptTooLongError)
}


class ProcessEngineClient:
    """Implements `EngineClient`. Use on one event loop; `start` spawns, `close` ends the process."""

    def __init__(
        self,
        flags: ServeFlags,
        name: str,
        *,
        on_progress: OnProgress = lambda progress: None,
        engine_main: EngineMain = entry.main,
    ) -> None:
        """`engine_main`: what the process runs; one that spawn can import."""
        self._flags = flags
        self._name = name
        self._on_progress = on_progress
        self._engine_main = engine_main
        self.post_control: PostControl | None = None
        """Posts the engine's outgoing handoff messages; set by the server's handoff endpoint."""
        self.on_status: Callable[[EngineStatus], None] = lambda status: None
        """Called with every status; set by the metrics collector."""
        self.on_spans: Callable[[list[FinishedSpan]], None] = lambda spans: None
        """Called with the spans of traced requests; set by the server."""
        self._private = PrivateFolder()
        self._folder = self._private.path
        self._context = zmq.asyncio.Context()
        self._info: asyncio.Future[EngineInfo] | None = None
        self._status = EngineStatus()
        self._queues: dict[str, asyncio.Queue[EngineOutput | None]] = {}
        self._calls: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._call_ids = itertools.count(1)
        self._tasks: set[asyncio.Future[None]] = set()
        self._failure: Failed | None = None
        self._dead = asyncio.Event()
        self._missed_beats = 0

    def start(self) -> None:
        self._info = asyncio.get_running_loop().create_future()
        self._inbound = ipc.pull(self._context, ipc.from_engine_address(self._folder))
        self._outbound = ipc.push(self._context, ipc.to_engine_address(self._folder))
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(
            target=self._engine_main, args=(self._flags, self._name, self._folder, os.getpid()), name="tandem-engine"
        )
        self._process.start()
        asyncio.get_running_loop().add_reader(self._process.sentinel, self._on_exit)
        self._spawn(self._receive())
        self._watching = self._spawn(self._watch())

    @property
    def info(self) -> EngineInfo:
        assert self._info is not None, "start() first"
        return self._info.result()

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def alive(self) -> bool:
        """Whether the engine runs and, once it is ready, has been heard of lately."""
        return not self._dead.is_set() and self._missed_beats < SILENT_BEATS_TO_FROZEN

    async def wait_ready(self) -> None:
        assert self._info is not None, "start() first"
        await asyncio.shield(self._info)

    async def wait_dead(self) -> Failed:
        """Returns when the engine process has ended without having been closed."""
        await self._dead.wait()
        return self._failure or Failed(f"the engine process ended with status {self._process.exitcode}")

    @contextlib.asynccontextmanager
    async def generate(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[list[AsyncGenerator[EngineOutput, None]]]:
        ids = [request.request_id for request in requests]
        assert self._queues.keys().isdisjoint(ids), "request ids are unique"
        self._queues |= {request_id: asyncio.Queue() for request_id in ids}
        try:
            if self.alive:
                await self._send(Choices.of(requests))
            else:
                for request_id in ids:
                    self._queues[request_id].put_nowait(None)
            yield [self._outputs(request_id, self._queues[request_id]) for request_id in ids]
        finally:
            for request_id in ids:
                self._abandon(request_id)

    async def _outputs(
        self, request_id: str, queue: asyncio.Queue[EngineOutput | None]
    ) -> AsyncGenerator[EngineOutput, None]:
        try:
            while True:
                output = await queue.get()
                if output is None:
                    raise EngineDeadError("the engine has stopped, or is frozen")
                if output.finish_reason is not None:
                    self._queues.pop(request_id, None)
                if output.finish_reason == "error":
                    raise _REFUSALS[output.error_code](
                        output.error or "the engine refused the request", param=output.error_param
                    )
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._abandon(request_id)

    def _abandon(self, request_id: str) -> None:
        """Unless the engine has ended the request already."""
        if self._queues.pop(request_id, None) is not None and not self._dead.is_set():
            # Not awaited: the caller may be closing under cancellation, and the socket never blocks.
            self._spawn(self._send(Abort(request_id)))

    async def control(self, path: str, body: bytes) -> tuple[int, bytes]:
        call_id = next(self._call_ids)
        reply: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = reply
        try:
            await self._send(ControlCall(call_id=call_id, path=path, body=body))
            return await asyncio.wait_for(reply, CONTROL_TIMEOUT_S)
        except TimeoutError:
            return 503, b'{"error":"the engine did not answer in time"}'
        finally:
            del self._calls[call_id]

    async def close(self) -> None:
        """Ends the engine: politely, then by force. Leaves no process, socket or file behind."""
        self._watching.cancel()  # an engine that ends is silent, and not frozen
        # One that still loads would not listen.
        if not self._dead.is_set() and self._info is not None and self._info.done():
            await self._send(Shutdown())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._dead.wait(), EXIT_GRACE_S)
        if self._process.is_alive():
            self._process.kill()
        await asyncio.to_thread(self._process.join)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=0)
        self._private.close()

    async def _send(self, message: ipc.ToEngine) -> None:
        await self._outbound.send(ipc.encode(message))

    async def _receive(self) -> None:
        while True:
            frame = await self._inbound.recv()
            self._missed_beats = 0
            try:
                self._take(ipc.decode_from_engine(frame))
            except Exception as error:
                # Whoever waits for that message waits for ever; a pod that ends is started again.
                logger.exception("a message of the engine process could not be taken")
                self._failure = Failed(f"a message of the engine process could not be taken: {error}")
                self._process.kill()

    def _take(self, message: ipc.FromEngine) -> None:
        match message:
            case Outputs():
                for output in message.outputs:
                    if queue := self._queues.get(output.request_id):
                        queue.put_nowait(output)
            case EngineStatus():
                self._status = message
                self.on_status(message)
            case Spans():
                self.on_spans(message.spans)
            case ControlCall():
                self._spawn(self._post(message))
            case ControlReply():
                if (reply := self._calls.get(message.call_id)) and not reply.done():
                    reply.set_result((message.status, message.body))
            case Progress():
                self._on_progress(message)
            case Failed():
                self._failure = message
            case EngineInfo():
                assert self._info is not None
                self._info.set_result(message)

    async def _watch(self) -> None:
        """Ends the requests of an engine that has frozen: nobody knows for how long, and another pod may serve them.

        Beats are counted, not seconds: after a pause of the whole machine the engine gets its time to be heard.
        """
        assert self._info is not None
        await asyncio.wait([self._info])
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._missed_beats += 1
            if self._missed_beats == SILENT_BEATS_TO_FROZEN:
                logger.error("the engine is frozen: ending its %d requests", len(self._queues))
                self._end_requests()

    async def _post(self, call: ControlCall) -> None:
        assert self.post_control is not None, "a pod with handoffs has a handoff endpoint"
        status, body = await self.post_control(call)
        await self._send(ControlReply(call_id=call.call_id, status=status, body=body))

    def _spawn(self, work: Awaitable[None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._spawn(self._settle())

    async def _settle(self) -> None:
        """What the engine said last may still be in the socket: read it before declaring the engine dead."""
        while await self._inbound.poll(LAST_WORDS_MS):  # noqa: ASYNC110 - the reader task empties it
            await asyncio.sleep(0)
        self._process.join()
        self._dead.set()
        if self._info is not None and not self._info.done():
            message = (
                self._failure.message if self._failure else f"the engine ended with status {self._process.exitcode}"
            )
            self._info.set_exception(StartupError(message))
            # Nobody asks for it where the server was ended while the engine loaded.
            self._info.exception()
        self._end_requests()

    def _end_requests(self) -> None:
        for queue in self._queues.values():
            queue.put_nowait(None)
