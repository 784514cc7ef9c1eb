"""POST /v1/responses, without anything stored."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Literal

from aiohttp import web
from tandem_contract import headers

from tandem_runtime.core.errors import RequestError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.server.chat import limits_for, thinking_of
from tandem_runtime.server.choice import Choice, Delta, Scored
from tandem_runtime.server.exchange import ChunkUsage, Collected, Exchange, Trace
from tandem_runtime.server.generation import ChoiceRequest, Generation
from tandem_runtime.server.intake import read_generation, wants_trace
from tandem_runtime.server.keys import POD, REQUEST_ID
from tandem_runtime.server.logprobs import for_chat
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.server.prompts import encode, render_chat
from tandem_runtime.server.protocol.answers import ContentLogprob, Usage
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.convert import to_engine_requests
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
from tandem_runtime.server.protocol.responses import ResponsesRequest
from tandem_runtime.server.response_items import OutputItems
from tandem_runtime.server.sse import named_event
from tandem_runtime.text.detokenize import TokenBytes
from tandem_runtime.text.reasoning import ReasoningParser, state_after_prompt


async def create_response(request: web.Request) -> web.StreamResponse:
    arrived = time.perf_counter()
    pod = request.app[POD]
    given, past = await read_generation(request, pod)
    body = parse(ResponsesRequest, given)
    model = pod.model(body.model)
    with pod.flight():
        prompt = _render(model, body)
        [engine_request] = to_engine_requests(
            body,
            await encode(model, prompt, add_special_tokens=False),
            request_id=pod.engine_request_id(request[REQUEST_ID]),
            info=model.info,
            defaults=model.defaults,
            prompt_param="input",
            limit_param="max_output_tokens",
            max_tokens=body.max_output_tokens,
            seed=past.origin.seed,
            logprobs=body.alternatives,
            deadline_s=pod.flags.request_timeout - past.elapsed_s,
            tickets=pod.accept_tickets(request.headers.get(headers.TICKET)),
            limits=limits_for(body.structure(), thinking_of(model, prompt, budget=None)),
        )
        choice = Choice(
            0,
            model.tokenizer.detokenizer(),
            reasoning=ReasoningParser(state_after_prompt(prompt)) if model.splits_reasoning else None,
            stops=body.stops,
            min_tokens=body.min_tokens,
        )
        exchange = Exchange(
            pod=pod,
            past=past,
            generation=Generation(model.engine, pod.metrics, arrived=arrived),
            prompts=[[ChoiceRequest(choice, engine_request)]],
            format=ResponseFormat(
                request[REQUEST_ID],
                _blank(f"resp_{request[REQUEST_ID]}", past.origin.created, body, engine_request.sampling),
                token_bytes=model.tokenizer.token_bytes if body.alternatives is not None else None,
            ),
            stream=bool(body.stream),
            wants_trace=wants_trace(request),
            usage_in_chunks="last",
        )
        return await exchange.answer(request)


def _render(model: LoadedModel, body: ResponsesRequest) -> str:
    try:
        return render_chat(
            model, body.messages, template_kwargs=body.chat_template_kwargs, enable_thinking=body.enable_thinking
        )
    except RequestError as error:
        if error.param == "messages":
            error.param = "input"
        raise


def _blank(id: str, created: int, body: ResponsesRequest, sampling: SamplingParams) -> Response:
    return Response(
        id=id,
        created_at=created,
        model=body.model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_logprobs=body.top_logprobs or 0,
        text=body.text_format,
        reasoning={"effort": None, "summary": None},
    )


class ResponseFormat:
    """Implements `exchange.AnswerFormat` for the one choice that a response has."""

    def __init__(self, request_id: str, response: Response, *, token_bytes: TokenBytes | None) -> None:
        """`response`: before any output; `token_bytes`: only when logprobs were asked for."""
        self.keeps_logprobs = token_bytes is not None
        self._response = response
        self._output = OutputItems(request_id)
        self._token_bytes = token_bytes
        self._unsaid: list[Scored] = []
        """Waiting for their text."""
        self._scored = 0
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
        self._response.output = self._output.items
        return self._encode([ResponseFailed(response=self._response)])

    def body(self, collected: Sequence[Collected], usage: Usage, trace: Trace) -> Response:
        [one] = collected
        whole = Delta(
            reasoning="".join(one.reasoning), content="".join(one.content), scored=one.scored, finish=one.choice.finish
        )
        for _ in self._add(one.choice, whole):
            pass
        return self._complete(usage, trace)

    def _add(self, choice: Choice, delta: Delta) -> Iterable[Event]:
        self._unsaid += delta.scored
        if delta.reasoning:
            yield from self._output.reasoning(delta.reasoning)
        if delta.content:
            yield from self._output.text(delta.content, self._logprobs(choice))
        if delta.finish is not None:
            yield from self._output.finish(delta.finish)
            if delta.finish == "length":
                self._response.incomplete_details = IncompleteDetails()

    def _logprobs(self, choice: Choice) -> list[ContentLogprob]:
        """Of text alone: those of reasoning come first, and OpenAI has no place for them."""
        if self._token_bytes is None:
            return []
        skipped = max(0, choice.reasoning_tokens - self._scored)
        said, self._unsaid = self._unsaid[skipped:], []
        self._scored += skipped + len(said)
        return for_chat(said, self._token_bytes).content

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
