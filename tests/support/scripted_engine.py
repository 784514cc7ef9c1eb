"""An `EngineClient` that says what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from tandem_contract.handoff import LayoutFingerprint, RequestTrace
from tandem_runtime.core.errors import RequestError, StartupError
from tandem_runtime.core.sampling import TokenLogprobs
from tandem_runtime.engine.client import EngineInfo
from tandem_runtime.engine.messages import EngineOutput, EngineRequest, EngineStatus, Failed
from tandem_tracing.spans import FinishedSpan

TRACE = RequestTrace(
    decode_pod="d-0",
    prefill_pod="p-0",
    prompt_tokens=7,
    cached_tokens=3,
    handoff_pages=2,
    handoff_bytes=4096,
    handoff_seconds=0.01,
    queue_seconds=0.002,
    ttft_seconds=0.02,
    tpot_seconds=0.003,
)


class ScriptedEngine:
    """Answers every request with `reply`'s tokens, or with an error where one is set. Obeys max_tokens and stop ids."""

    def __init__(
        self,
        reply: Callable[[EngineRequest], Sequence[int]] = lambda request: [],
        *,
        vocab_size: int = 400,
        eos_token_ids: tuple[int, ...] = (2,),
        max_model_len: int = 256,
    ) -> None:
        self.reply = reply
        self.refuse: RequestError | None = None
        """Raised before the first output."""
        self.break_after: int | None = None
        """Tokens after which the engine reports an error."""
        self.hang: asyncio.Event | None = None
        """Awaited before the first output."""
        self.bug: Exception | None = None
        """Raised before the second output."""
        self.gate: asyncio.Event | None = None
        """Awaited before every token but the first."""
        self.startup_error: StartupError | None = None
        self.loaded = asyncio.Event()
        self.requests: list[EngineRequest] = []
        self.began: asyncio.Queue[str] = asyncio.Queue()
        """Request ids that have yielded their first output."""
        self.yielded = 0
        """Outputs in all."""
        self.ended: list[str] = []
        """Request ids whose generator has ended, for whatever reason."""
        self.aborted: asyncio.Queue[str] = asyncio.Queue()
        """Request ids whose generator was closed before its end."""
        self.closed = False
        self.dead = asyncio.Event()
        self.on_status: Callable[[EngineStatus], None] = lambda status: None
        self.on_spans: Callable[[list[FinishedSpan]], None] = lambda spans: None
        self.post_control: Any = None
        self.status = EngineStatus(kv_pages_total=64)
        self.info = EngineInfo(
            fingerprint=LayoutFingerprint(
                model="m",
                kv_dtype="float32",
                num_layers=2,
                num_kv_heads=2,
                head_dim=8,
                page_size=16,
                rope="{}",
                tensor_parallel=1,
            ),
            arithmetic="scripted",
            max_model_len=max_model_len,
            page_size=16,
            num_pages=64,
            max_waiting=8,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            load_seconds=0.5,
            incarnation="i-1",
        )

    @property
    def alive(self) -> bool:
        return not self.dead.is_set()

    def resize(self, **changes: int) -> None:
        """Changes fields of `info`."""
        self.info = msgspec.structs.replace(self.info, **changes)

    async def wait_ready(self) -> None:
        if self.startup_error is not None:
            raise self.startup_error
        await self.loaded.wait()

    async def wait_dead(self) -> Failed:
        await self.dead.wait()
        return Failed("the scripted engine died")

    @asynccontextmanager
    async def generate(
        self, requests: Sequence[EngineRequest]
    ) -> AsyncIterator[list[AsyncGenerator[EngineOutput, None]]]:
        answers = [self._answer(request) for request in requests]
        try:
            yield answers
        finally:
            for answer in answers:
                await answer.aclose()

    async def _answer(self, request: EngineRequest) -> AsyncGenerator[EngineOutput, None]:
        if self.refuse is not None:
            raise self.refuse
        self.requests.append(request)
        finished = False
        try:
            if self.hang is not None:
                await self.hang.wait()
            outputs = self._outputs(request)
            first = outputs[0]
            for output in outputs:
                if self.gate is not None and output is not first:
                    await self.gate.wait()
                if self.bug is not None and output is not first:
                    raise self.bug
                # A real engine's outputs come through a queue: others get a turn in between.
                await asyncio.sleep(0)
                finished = output.finish_reason is not None
                self.yielded += 1
                if output is first:
                    self.began.put_nowait(request.request_id)
                yield output
        finally:
            self.ended.append(request.request_id)
            if not finished:
                self.aborted.put_nowait(request.request_id)

    async def control(self, path: str, body: bytes) -> tuple[int, bytes]:
        return 404, b"{}"

    async def close(self) -> None:
        self.closed = True

    def _outputs(self, request: EngineRequest) -> list[EngineOutput]:
        sampling = request.sampling
        tokens = list(self.reply(request))[: sampling.max_tokens]
        outputs = []
        for position, token_id in enumerate(tokens):
            if position < len(request.output_token_ids):
                assert token_id == request.output_token_ids[position], "another pod said something else"
                continue
            if position == self.break_after:
                outputs.append(EngineOutput(request_id=request.request_id, finish_reason="error", error="page lost"))
                break
            stopped = token_id in sampling.stop_token_ids and position >= sampling.min_tokens
            last = stopped or position == len(tokens) - 1
            outputs.append(
                EngineOutput(
                    request_id=request.request_id,
                    token_ids=[token_id],
                    logprobs=None if sampling.logprobs is None else [_scored(token_id, sampling.logprobs)],
                    prompt_logprobs=self._prompt_logprobs(request) if not outputs else None,
                    finish_reason=("stop" if stopped else "length") if last else None,
                    stop_token_id=token_id if stopped else None,
                    cached_tokens=3,
                    trace=TRACE if last or not outputs else None,
                )
            )
            if last:
                break
        return outputs

    def _prompt_logprobs(self, request: EngineRequest) -> list[TokenLogprobs] | None:
        alternatives = request.sampling.prompt_logprobs
        if alternatives is None:
            return None
        return [_scored(token_id, alternatives) for token_id in request.prompt_token_ids[1:]]


def _scored(token_id: int, alternatives: int) -> TokenLogprobs:
    return TokenLogprobs(token_id, -0.5, 1, [(token_id, -0.5), (token_id + 1, -1.5)][:alternatives])
