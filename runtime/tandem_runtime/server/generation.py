"""Runs the choices of one API request on the engine, together, and yields their text as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

from tandem_runtime.core.errors import DeadlineExceededError, OverloadedError, RequestError
from tandem_runtime.engine.client import EngineClient, EngineInfo
from tandem_runtime.engine.messages import EngineOutput, EngineRequest
from tandem_runtime.server.choice import Choice, Delta
from tandem_runtime.server.errors import GenerationError
from tandem_runtime.server.metrics import Metrics

News = tuple[Choice, Delta]


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """A choice, and the engine request that feeds it."""

    choice: Choice
    request: EngineRequest


class Generation:
    def __init__(self, engine: EngineClient, metrics: Metrics, *, arrived: float) -> None:
        """`arrived`: `time.perf_counter` of the HTTP request."""
        self._engine = engine
        self._metrics = metrics
        self._arrived = arrived

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def run(self, prompts: Sequence[Sequence[ChoiceRequest]]) -> AsyncGenerator[News, None]:
        """`prompts`: the choices of each prompt. Closing the iterator aborts all of them.

        Raises `RequestError`; what had been yielded by then stands.
        """
        async with AsyncExitStack() as stack:
            sources: list[AsyncGenerator[News, None]] = []
            for choices in filter(None, prompts):
                outputs = await stack.enter_async_context(self._engine.generate([item.request for item in choices]))
                sources += map(self._follow, choices, outputs)
            async with aclosing(sources[0] if len(sources) == 1 else _mixed(sources)) as news:
                async for choice_and_delta in news:
                    yield choice_and_delta

    async def _follow(
        self, followed: ChoiceRequest, outputs: AsyncGenerator[EngineOutput, None]
    ) -> AsyncGenerator[News, None]:
        choice = followed.choice
        timing = self._metrics.request(self._arrived, resumed=bool(followed.request.output_token_ids))
        outcome = "abort"
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    timing.tokens(len(output.token_ids), time.perf_counter())
                    if output.trace is not None and choice.trace is None:
                        timing.trace(output.trace)
                    _raise_if_failed(output)
                    delta = choice.accept(output)
                    if delta.finish is not None:
                        outcome = delta.finish
                        if output.finish_reason is None and choice.trace is not None:
                            choice.trace = replace(choice.trace, tpot_seconds=timing.tpot_seconds)
                    if delta:
                        yield choice, delta
                    if delta.finish is not None:
                        return
        except DeadlineExceededError:
            outcome = "deadline"
            raise
        except OverloadedError:
            outcome = "rejected"
            raise
        except RequestError:
            outcome = "error"
            raise
        finally:
            timing.end(outcome, time.perf_counter())


async def _mixed(sources: Sequence[AsyncGenerator[News, None]]) -> AsyncGenerator[News, None]:
    """The news of all, as they come."""
    # Bounded, so that a slow client holds up its own sequences' text and nothing else grows.
    queue: asyncio.Queue[News | Exception | None] = asyncio.Queue(maxsize=64)

    async def pump(source: AsyncGenerator[News, None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    await queue.put(item)
            await queue.put(None)
        except Exception as error:  # whatever it is, the reader raises it
            await queue.put(error)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _raise_if_failed(output: EngineOutput) -> None:
    match output.finish_reason:
        case "deadline":
            raise DeadlineExceededError("the request took longer than the server allows")
        case "error":
            raise GenerationError(output.error or "the engine failed")
        case "abort":
            raise GenerationError("the engine aborted the request")
