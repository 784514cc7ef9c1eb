"""POST /v1/responses, without anything stored."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import count
from typing import Any, Literal

from aiohttp import web

from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.choice import Choice, Delta, Scored
from tandem_runtime.server.conversation import Asked, converse
from tandem_runtime.server.exchange import ChunkUsage, Trace
from tandem_runtime.server.logprobs import for_chat
from tandem_runtime.server.protocol.answers import ContentLogprob, Usage, call_id
from tandem_runtime.server.protocol.response_output import (
    Event,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseUsage,
)
from tandem_runtime.server.protocol.response_tools import FunctionTool
from tandem_runtime.server.protocol.responses import ResponsesRequest
from tandem_runtime.server.response_items import OutputItems
from tandem_runtime.server.sse import named_event


async def create_response(request: web.Request) -> web.StreamResponse:
    return await converse(request, ResponsesRequest, ResponseFormat)


class ResponseFormat:
    """Implements `exchange.AnswerFormat` for the one choice that a response has."""

    def __init__(self, asked: Asked[ResponsesRequest]) -> None:
        self.keeps_logprobs = asked.token_bytes is not None
        self._response = _without_output(asked)
        self._output = OutputItems(asked.answer_id)
        self._token_bytes = asked.token_bytes
        self._unsaid: list[Scored] = []
        """Waiting for their text."""
        self._scored = 0
        """Before `_unsaid`."""
        self._numbers = count()

    def opening(self, choice: Choice, usage: ChunkUsage) -> bytes:
        return self._encode([ResponseCreated(response=self._response), ResponseInProgress(response=self._response)])

    def chunk(self, choice: Choice, delta: Delta, usage: ChunkUsage, trace: Trace) -> bytes:
        return self._encode(self._add(choice, delta))

    def ending(self, usage: Usage | None, trace: Trace) -> bytes:
        response = self._complete(usage, trace)
        done = ResponseCompleted if response.status == "completed" else ResponseIncomplete
        return self._encode([done(response=response)])

    def failure(self, error: RequestError) -> bytes:
        self._response.status = "failed"
        self._response.error = ResponseError(code=_error_code(error), message=str(error))
        self._output.cut_off()
        self._response.output = self._output.items
        return self._encode([ResponseFailed(response=self._response)])

    def collect(self, choice: Choice, delta: Delta) -> None:
        for _ in self._add(choice, delta):
            pass

    def body(self, usage: Usage, trace: Trace) -> Response:
        return self._complete(usage, trace)

    def _add(self, choice: Choice, delta: Delta) -> Iterable[Event]:
        if self._output.in_call:
            self._forget_scored()
        self._unsaid += delta.scored
        if delta.reasoning:
            yield from self._output.reasoning(delta.reasoning)
        for piece in delta.said:
            if isinstance(piece, str):
                yield from self._output.text(piece, self._logprobs(choice))
                continue
            self._forget_scored()
            if piece.name is not None:
                yield from self._output.call(piece.name, call_id(self._response.id, choice.index, piece.index))
            if piece.arguments:
                yield from self._output.arguments(piece.arguments)
        if delta.finish is not None:
            yield from self._output.finish(delta.finish)
            if delta.finish == "length":
                self._response.incomplete_details = IncompleteDetails()

    def _logprobs(self, choice: Choice) -> list[ContentLogprob]:
        """Of text alone: those of reasoning come first, and OpenAI has no place for them."""
        if self._token_bytes is None:
            return []
        said = self._unsaid[max(0, choice.reasoning_tokens - self._scored) :]
        self._forget_scored()
        return for_chat(said, self._token_bytes).content

    def _forget_scored(self) -> None:
        """Those of calls, for which OpenAI has no place either."""
        self._scored += len(self._unsaid)
        self._unsaid = []

    def _complete(self, usage: Usage | None, trace: Trace) -> Response:
        response = self._response
        response.status = "incomplete" if response.incomplete_details is not None else "completed"
        response.completed_at = int(time.time()) if response.status == "completed" else None
        response.output = self._output.items
        response.usage = None if usage is None else _usage(usage)
        response.tandem = trace
        return response

    def _encode(self, events: Iterable[Event]) -> bytes:
        """An event is encoded before the next one is made: they share items that change."""
        encoded = []
        for one in events:
            one.sequence_number = next(self._numbers)
            encoded.append(named_event(str(one.__struct_config__.tag), one))
        return b"".join(encoded)


def _without_output(asked: Asked[ResponsesRequest]) -> Response:
    body, sampling = asked.body, asked.sampling
    return Response(
        id=f"resp_{asked.answer_id}",
        created_at=asked.created,
        model=body.model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_logprobs=body.top_logprobs or 0,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        tool_choice=_tool_choice(body),
        tools=[_tool(tool) for tool in body.tools or ()],
        text={"format": _text_format(body)},
        reasoning={"effort": body.effort, "summary": None},
    )


def _tool_choice(body: ResponsesRequest) -> str | dict[str, Any]:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _tool(tool: FunctionTool) -> dict[str, Any]:
    # `strict` too as it came: where it was not said, both true and false would mean something else, sent back.
    return tool.model_dump(include={"type", "name", "description", "parameters", "strict"})


def _text_format(body: ResponsesRequest) -> dict[str, Any]:
    asked = body.text.format if body.text is not None else None
    return {"type": "text"} if asked is None else asked.model_dump(by_alias=True, exclude_none=True)


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.completion_tokens_details.reasoning_tokens),
        total_tokens=usage.total_tokens,
    )


def _error_code(error: RequestError) -> Literal["server_error", "rate_limit_exceeded"]:
    """Clients know these alone."""
    return "rate_limit_exceeded" if error.status in (429, 503) else "server_error"
