"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from aiohttp import web
from msgspec import UNSET
from tandem_contract import headers

from tandem_runtime.core.errors import RequestError
from tandem_runtime.core.sampling import Thinking
from tandem_runtime.grammar.sources import combine
from tandem_runtime.server.choice import Choice, Delta, Scored
from tandem_runtime.server.exchange import ChunkUsage, Collected, Exchange, Trace
from tandem_runtime.server.generation import ChoiceRequest, Generation
from tandem_runtime.server.intake import read_generation, wants_trace
from tandem_runtime.server.keys import POD, REQUEST_ID
from tandem_runtime.server.logprobs import for_chat
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.server.prompts import encode, render_chat
from tandem_runtime.server.protocol.answers import (
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    MessageToolCall,
    ToolCallPiece,
    Usage,
)
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.server.protocol.convert import Limits, check_choices, to_engine_requests
from tandem_runtime.server.protocol.structure import Structure
from tandem_runtime.server.sse import DONE, error_event, event
from tandem_runtime.text.detokenize import TokenBytes
from tandem_runtime.text.reasoning import ReasoningParser, state_after_prompt
from tandem_runtime.text.tool_calls import CallDelta, ToolCallParser


async def chat_completions(request: web.Request) -> web.StreamResponse:
    arrived = time.perf_counter()
    pod = request.app[POD]
    given, past = await read_generation(request, pod)
    body = parse(ChatRequest, given)
    model = pod.model(body.model)
    with pod.flight():
        check_choices(body.choices, 1, model.info)
        prompt = render_chat(
            model,
            body.messages,
            template_kwargs=body.template_variables,
            enable_thinking=body.thinks,
            tools=body.template_tools,
        )
        engine_requests = to_engine_requests(
            body,
            await encode(model, prompt, add_special_tokens=False),
            request_id=pod.engine_request_id(request[REQUEST_ID]),
            info=model.info,
            defaults=model.defaults,
            prompt_param="messages",
            max_tokens=body.token_limit,
            seed=past.origin.seed,
            logprobs=body.alternatives,
            deadline_s=pod.flags.request_timeout - past.elapsed_s,
            tickets=pod.accept_tickets(request.headers.get(headers.TICKET)),
            limits=_limits(model, prompt, body),
        )
        choices = [
            ChoiceRequest(_choice(index, model, prompt, body), engine_request)
            for index, engine_request in enumerate(engine_requests)
        ]
        exchange = Exchange(
            pod=pod,
            past=past,
            generation=Generation(model.engine, pod.metrics, arrived=arrived),
            prompts=[choices],
            format=ChatFormat(
                id=f"chatcmpl-{request[REQUEST_ID]}",
                created=past.origin.created,
                model=body.model,
                token_bytes=model.tokenizer.token_bytes if body.logprobs else None,
            ),
            stream=bool(body.stream),
            wants_trace=wants_trace(request),
            usage_in_chunks=body.usage_in_chunks,
        )
        return await exchange.answer(request)


def _limits(model: LoadedModel, prompt: str, body: ChatRequest) -> Limits:
    structure = body.structure()
    calls = body.call_grammar(beside_format=structure is not None)
    thinking = thinking_of(model, prompt, body.budget)
    if calls is None:
        return limits_for(structure, thinking)
    if structure is None or body.must_call:
        return Limits(combine(calls), "tools", thinking)
    return Limits(combine(structure.part, calls), structure.param, thinking)


def limits_for(structure: Structure | None, thinking: Thinking | None) -> Limits:
    """Of an answer to a rendered conversation, which may begin with a thought."""
    return (
        Limits(thinking=thinking) if structure is None else Limits(combine(structure.part), structure.param, thinking)
    )


def thinking_of(model: LoadedModel, prompt: str, budget: int | None) -> Thinking | None:
    """Where a thought may come before the answer; None where none can."""
    state = state_after_prompt(prompt)
    tokens = model.tokenizer.thinking_tokens() if model.splits_reasoning else None
    if tokens is None and budget:
        raise RequestError("the model does not think, so there is no thought to limit", param="thinking_budget")
    if tokens is None or state == "answering":
        return None
    return Thinking(
        open_id=tokens.open_id,
        close_id=tokens.close_id,
        break_ids=tokens.break_ids,
        begun=state == "thinking",
        budget=budget,
    )


def _choice(index: int, model: LoadedModel, prompt: str, body: ChatRequest) -> Choice:
    return Choice(
        index,
        model.tokenizer.detokenizer(),
        reasoning=ReasoningParser(state_after_prompt(prompt)) if model.splits_reasoning else None,
        tools=_tool_calls(body),
        stops=body.stops,
        min_tokens=body.min_tokens,
    )


def _tool_calls(body: ChatRequest) -> ToolCallParser | None:
    names = {function.name for function in body.callable_functions}
    return ToolCallParser(names, at_most=body.most_calls) if names else None


class ChatFormat:
    """Implements `exchange.AnswerFormat`."""

    keeps_logprobs = False

    def __init__(self, *, id: str, created: int, model: str, token_bytes: TokenBytes | None) -> None:
        """`token_bytes`: only when logprobs were asked for."""
        self._id = id
        self._model = model
        self._created = created
        self._token_bytes = token_bytes

    def opening(self, choice: Choice, usage: ChunkUsage) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        return event(self._chunk([ChatChunkChoice(index=choice.index, delta=delta)], usage))

    def chunk(self, choice: Choice, delta: Delta, usage: ChunkUsage, trace: Trace) -> bytes:
        text = ChatDelta(
            content=delta.content or UNSET,
            reasoning_content=delta.reasoning or UNSET,
            tool_calls=[self._piece(choice, call) for call in delta.calls] or UNSET,
        )
        logprobs = self._logprobs(delta.scored) if delta.scored else None
        piece = ChatChunkChoice(index=choice.index, delta=text, logprobs=logprobs, finish_reason=delta.finish)
        return event(self._chunk([piece], usage, trace))

    def ending(self, usage: Usage | None, trace: Trace) -> bytes:
        return DONE if usage is None else event(self._chunk([], usage, trace)) + DONE

    def failure(self, error: RequestError) -> bytes:
        return error_event(error)

    def body(self, collected: Sequence[Collected], usage: Usage, trace: Trace) -> ChatCompletion:
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._whole(one) for one in collected],
            usage=usage,
            tandem=trace,
        )

    def _chunk(self, pieces: list[ChatChunkChoice], usage: ChunkUsage, trace: Trace = UNSET) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=pieces, usage=usage, tandem=trace
        )

    def _whole(self, one: Collected) -> ChatChoice:
        reasoning, content = "".join(one.reasoning), "".join(one.content)
        calls = self._calls(one)
        assert one.choice.finish is not None
        return ChatChoice(
            index=one.choice.index,
            message=ChatMessage(
                content=content if content or not (reasoning or calls) else None,
                reasoning_content=reasoning or None,
                tool_calls=calls,
            ),
            logprobs=self._logprobs(one.scored),
            finish_reason=one.choice.finish,
        )

    def _piece(self, choice: Choice, call: CallDelta) -> ToolCallPiece:
        if call.name is None:
            return ToolCallPiece(index=call.index, function=CalledFunction(arguments=call.arguments))
        return ToolCallPiece(
            index=call.index,
            function=CalledFunction(arguments=call.arguments, name=call.name),
            id=self._call_id(choice, call.index),
            type="function",
        )

    def _calls(self, one: Collected) -> list[MessageToolCall]:
        calls: list[MessageToolCall] = []
        for delta in one.calls:
            if delta.name is not None:
                function = CalledFunction(arguments="", name=delta.name)
                calls.append(MessageToolCall(id=self._call_id(one.choice, delta.index), function=function))
            calls[delta.index].function.arguments += delta.arguments
        return calls

    def _call_id(self, choice: Choice, index: int) -> str:
        """The same on every pod that takes part in a stream."""
        return f"call_{uuid.uuid5(uuid.NAMESPACE_OID, f'{self._id}/{choice.index}/{index}').hex[:24]}"

    def _logprobs(self, scored: Sequence[Scored]) -> ChatLogprobs | None:
        return None if self._token_bytes is None else for_chat(scored, self._token_bytes)
