"""One API request and its answer: as one body, or as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType
from tandem_contract import headers
from tandem_contract.handoff import RequestTrace
from tandem_contract.live_stream import END
from tandem_http.shielded_write import shielded_write

from tandem_runtime.core.errors import DeadlineExceededError, EngineDeadError, RequestError
from tandem_runtime.server.choice import Choice, Delta
from tandem_runtime.server.errors import InternalError, UnavailableError
from tandem_runtime.server.generation import ChoiceRequest, Generation, News
from tandem_runtime.server.keys import SPAN
from tandem_runtime.server.live import Ground, Past, digest_of, record_of, take_up
from tandem_runtime.server.pod import Pod
from tandem_runtime.server.protocol.answers import Usage, usage
from tandem_runtime.server.protocol.common import UsageInChunks
from tandem_runtime.server.tracing import conclude, fail

logger = logging.getLogger(__name__)

TIMEOUT_GRACE_S = 5.0
"""The engine ends a request at its deadline. Where that does not help, because the client reads nothing or the engine
hangs, the server does so this much later."""

_STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

_POD_ERRORS = (EngineDeadError, UnavailableError)
"""End a live stream without a word: its gateway goes on at another pod."""

Trace = RequestTrace | UnsetType
ChunkUsage = Usage | UnsetType | None
"""What chunks say of usage: nothing, null where the last chunk will say it, or the counts so far."""


class AnswerFormat(Protocol):
    """How one of the APIs spells its answers. An answer is either streamed, as whole server-sent events if any, or
    collected."""

    @property
    def keeps_logprobs(self) -> bool:
        """Whether later events repeat the logprobs of earlier ones."""
        ...

    def opening(self, choice: Choice, usage: ChunkUsage) -> bytes:
        """Before the first chunk of `choice`."""
        ...

    def chunk(self, choice: Choice, delta: Delta, usage: ChunkUsage, trace: Trace) -> bytes: ...

    def ending(self, usage: Usage | None, trace: Trace) -> bytes:
        """After the last chunk of the last choice; `usage` where the stream is to tell it."""
        ...

    def failure(self, error: RequestError) -> bytes:
        """The end of a stream that cannot go on."""
        ...

    def collect(self, choice: Choice, delta: Delta) -> None: ...

    def body(self, usage: Usage, trace: Trace) -> msgspec.Struct:
        """All that was collected, once every choice has finished."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    pod: Pod
    past: Past
    generation: Generation
    prompts: Sequence[Sequence[ChoiceRequest]]
    """The choices of each prompt."""
    format: AnswerFormat
    stream: bool
    wants_trace: bool
    usage_in_chunks: UsageInChunks = "none"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Raises `RequestError` as long as nothing was sent."""
        try:
            return await self._answer(request)
        finally:
            if request[SPAN].context is not None:
                conclude(request[SPAN], self.choices(), self.usage(), self._first_trace())

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if not self.stream:
            return await self._whole(self.generation.run(self.prompts))
        ground = self._ground() if self.past.live else None
        if ground is not None:
            self.past.check(ground)
        script = _Script(self, ground)
        left = await take_up(self.prompts, self.past, self.generation.info, script.events)
        return await self._stream(request, self.generation.run(left), script)

    async def _whole(self, news: AsyncGenerator[News, None]) -> web.Response:
        try:
            async with self._time_limit(), aclosing(news):
                async for choice, delta in news:
                    self.format.collect(choice, delta)
        except TimeoutError:
            raise _too_slow() from None
        body = self.format.body(self.usage(), self.trace())
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _stream(
        self, request: web.Request, news: AsyncGenerator[News, None], script: _Script
    ) -> web.StreamResponse:
        live = {headers.STREAM: "live"} if self.past.live else {}
        response = web.StreamResponse(headers=_STREAM_HEADERS | live)
        try:
            async with self._time_limit(), aclosing(news):
                await self._write_news(request, response, news, script)
        except ConnectionError:
            raise  # nobody is left to be told
        except TimeoutError:
            if not response.prepared:
                raise _too_slow() from None
            fail(request[SPAN], _too_slow())
            if request.transport is not None:
                request.transport.abort()
        except (Exception, asyncio.CancelledError) as error:
            if not response.prepared:
                raise
            words = self._last_words(error)
            fail(request[SPAN], words)
            if not (self.past.live and isinstance(words, _POD_ERRORS)):
                await shielded_write(request.transport, response.write, script.failure(words))
        return response

    def _time_limit(self) -> asyncio.Timeout:
        return asyncio.timeout(self.pod.flags.request_timeout - self.past.elapsed_s + TIMEOUT_GRACE_S)

    def _last_words(self, error: Exception | asyncio.CancelledError) -> RequestError:
        """What the event says that ends a stream; raises a cancellation because the client is gone."""
        if isinstance(error, RequestError | asyncio.CancelledError):
            return self.pod.refusal(error)
        logger.error("unexpected error in a stream", exc_info=error)
        return InternalError()

    async def _write_news(
        self, request: web.Request, response: web.StreamResponse, news: AsyncIterator[News], script: _Script
    ) -> None:
        # The headers wait for the first token, so that a request refused until then gets an honest status.
        async for choice, delta in news:
            if not response.prepared:
                await response.prepare(request)
            await shielded_write(request.transport, response.write, script.events(choice, delta))
        if not response.prepared:  # a resumed stream of which only the ending was missing
            await response.prepare(request)
        await shielded_write(request.transport, response.write, script.ending())

    def _ground(self) -> Ground:
        return Ground(continuation=self.pod.continuation, prompt=digest_of(self.prompts))

    def usage_so_far(self) -> ChunkUsage:
        match self.usage_in_chunks:
            case "none":
                return UNSET
            case "last":
                return None
            case "all":
                return self.usage()

    def choices(self) -> list[Choice]:
        return [item.choice for prompt in self.prompts for item in prompt]

    def usage(self) -> Usage:
        choices = self.choices()
        return usage(
            prompt_tokens=sum(len(prompt[0].request.prompt_token_ids) for prompt in self.prompts),
            completion_tokens=sum(choice.completion_tokens for choice in choices),
            cached_tokens=sum(prompt[0].choice.cached_tokens for prompt in self.prompts),
            reasoning_tokens=sum(choice.reasoning_tokens for choice in choices),
        )

    def trace(self) -> Trace:
        trace = self._first_trace()
        return trace if self.wants_trace and trace is not None else UNSET

    def _first_trace(self) -> RequestTrace | None:
        """Of the first choice that ended here; it is the one that may have used a prefill pod."""
        return next((choice.trace for choice in self.choices() if choice.trace is not None), None)


class _Script:
    """Spells a stream, delta by delta, whether for the client or, silently, in a replay."""

    def __init__(self, exchange: Exchange, ground: Ground | None) -> None:
        """`ground`: of a live stream."""
        self._exchange = exchange
        self._format = exchange.format
        self._live = exchange.past.live
        self._ground = ground
        """Until it was recorded, together with the stream's origin."""
        self._opened: set[int] = set()
        self._unfinished = len(exchange.choices())

    def events(self, choice: Choice, delta: Delta) -> bytes:
        exchange = self._exchange
        usage = exchange.usage_so_far()
        first = choice.index not in self._opened
        text = b""
        if first:
            self._opened.add(choice.index)
            text = self._format.opening(choice, usage)
        self._unfinished -= delta.finish is not None
        # Said once, in the last event that can say it.
        trace = UNSET if self._unfinished or exchange.usage_in_chunks != "none" else exchange.trace()
        text += self._format.chunk(choice, delta, usage, trace)
        if self._live:
            scored = delta.scored if self._format.keeps_logprobs else ()
            origin = exchange.past.origin if self._ground is not None else None
            text += record_of(choice, delta, first=first, scored=scored, origin=origin, ground=self._ground)
            self._ground = None
        return text

    def ending(self) -> bytes:
        exchange = self._exchange
        usage = None if exchange.usage_in_chunks == "none" else exchange.usage()
        return self._closed(self._format.ending(usage, exchange.trace()))

    def failure(self, error: RequestError) -> bytes:
        return self._closed(self._format.failure(error))

    def _closed(self, events: bytes) -> bytes:
        return events + END if self._live else events


def _too_slow() -> DeadlineExceededError:
    return DeadlineExceededError("the request took longer than the server allows")
