"""The model's next turn in a conversation: what chat completions and responses have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from aiohttp import web
from tandem_contract import headers

from tandem_runtime.core.errors import RequestError
from tandem_runtime.core.sampling import SamplingParams, Thinking
from tandem_runtime.grammar.sources import combine
from tandem_runtime.server.choice import Choice
from tandem_runtime.server.exchange import AnswerFormat, Exchange
from tandem_runtime.server.generation import ChoiceRequest, Generation
from tandem_runtime.server.intake import read_generation, wants_trace
from tandem_runtime.server.keys import POD, REQUEST_ID, SPAN
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.server.prompts import encode, render_chat
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.conversation import Conversation, ConversationRequest
from tandem_runtime.server.protocol.convert import Limits, check_choices, to_engine_requests
from tandem_runtime.server.tracing import describe
from tandem_runtime.text.detokenize import TokenBytes
from tandem_runtime.text.reasoning import ReasoningParser, state_after_prompt
from tandem_runtime.text.template import THINKING_SWITCH
from tandem_runtime.text.tool_calls import ToolCallParser

Body = TypeVar("Body", bound=ConversationRequest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked(Generic[Body]):
    """What the format of an answer may repeat of its request."""

    answer_id: str
    """The part of its id that is no other answer's."""
    created: int
    """Unix seconds."""
    body: Body
    sampling: SamplingParams
    """Of the first choice."""
    token_bytes: TokenBytes | None
    """Only when logprobs were asked for."""


async def converse(
    request: web.Request, body_type: type[Body], new_format: Callable[[Asked[Body]], AnswerFormat]
) -> web.StreamResponse:
    """Answers a request of type `body_type` in the format of its API."""
    arrived = time.perf_counter()
    pod = request.app[POD]
    given, past = await read_generation(request, pod)
    body = parse(body_type, given)
    model = pod.model(body.model)
    with pod.flight():
        check_choices(body.choices, 1, model.info)
        asked = body.to_conversation()
        describe(request[SPAN], "chat", body, max_tokens=asked.max_tokens)
        _check_thought(model, body)
        prompt = render_chat(
            model,
            asked.messages,
            messages_param=asked.messages_param,
            template_kwargs=body.template_variables,
            enable_thinking=body.thinks,
            tools=asked.tools.for_template,
            now=past.origin.created,
        )
        engine_requests = to_engine_requests(
            body,
            await encode(model, prompt, add_special_tokens=False),
            request_id=pod.engine_request_id(request[REQUEST_ID]),
            info=model.info,
            defaults=model.defaults,
            prompt_param=asked.messages_param,
            limit_param=asked.max_tokens_param,
            max_tokens=asked.max_tokens,
            seed=past.origin.seed,
            logprobs=asked.logprobs,
            deadline_s=pod.flags.request_timeout - past.elapsed_s,
            tickets=pod.accept_tickets(request.headers.get(headers.TICKET)),
            limits=_limits(asked, _thinking(model, prompt, body)),
            trace=request[SPAN].context,
        )
        exchange = Exchange(
            pod=pod,
            past=past,
            generation=Generation(model.engine, pod.metrics, arrived=arrived),
            prompts=[
                [
                    ChoiceRequest(_choice(index, model, prompt, body, asked), engine_request)
                    for index, engine_request in enumerate(engine_requests)
                ]
            ],
            format=new_format(
                Asked(
                    answer_id=past.origin.answer_id,
                    created=past.origin.created,
                    body=body,
                    sampling=engine_requests[0].sampling,
                    token_bytes=None if asked.logprobs is None else model.tokenizer.token_bytes,
                )
            ),
            stream=bool(body.stream),
            wants_trace=wants_trace(request),
            usage_in_chunks=body.usage_in_chunks,
        )
        return await exchange.answer(request)


def _choice(index: int, model: LoadedModel, prompt: str, body: ConversationRequest, asked: Conversation) -> Choice:
    names = {function.name for function in asked.tools.callable}
    only_calls = asked.tools.must_call
    return Choice(
        index,
        model.tokenizer.detokenizer(),
        reasoning=ReasoningParser(state_after_prompt(prompt)) if model.splits_reasoning else None,
        tools=ToolCallParser(names, at_most=asked.tools.most_calls, only_calls=only_calls) if names else None,
        stops=body.stops,
        min_tokens=body.min_tokens,
    )


def _limits(asked: Conversation, thinking: Thinking | None) -> Limits:
    structure = asked.structure
    calls = asked.tools.grammar(beside_format=structure is not None)
    if calls is not None and (structure is None or asked.tools.must_call):
        return Limits(combine(calls), "tools", thinking)
    if structure is None:
        return Limits(thinking=thinking)
    parts = [structure.part] if calls is None else [structure.part, calls]
    return Limits(combine(*parts), structure.param, thinking)


def _check_thought(model: LoadedModel, body: ConversationRequest) -> None:
    """Raises `RequestError` for a field that asks for a thought of a model that does not think."""
    if not body.thought_params or model.thinking_tokens() is not None:
        return
    template = model.tokenizer.template
    for param in body.thought_params:
        # Where its thoughts are not told from its answers, a model may yet be told to think.
        if not (param.endswith(THINKING_SWITCH) and template is not None and template.switches_thinking):
            raise RequestError(f"'{param}' asks for a thought, but the model does not think; leave it out", param=param)


def _thinking(model: LoadedModel, prompt: str, body: ConversationRequest) -> Thinking | None:
    """Where a thought may come before the answer; None where none can."""
    state = state_after_prompt(prompt)
    tokens = model.thinking_tokens()
    if tokens is None or state == "answering":
        return None
    return Thinking(
        open_id=tokens.open_id,
        close_id=tokens.close_id,
        break_ids=tokens.break_ids,
        begun=state == "thinking",
        budget=body.budget,
    )
