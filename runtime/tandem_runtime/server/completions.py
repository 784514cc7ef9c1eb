"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web
from msgspec import UNSET
from tandem_contract import headers

from tandem_runtime.core.errors import RequestError
from tandem_runtime.grammar.sources import combine
from tandem_runtime.server.choice import Choice, Delta, Scored
from tandem_runtime.server.collected import Collected, Collection
from tandem_runtime.server.exchange import ChunkUsage, Exchange, Trace
from tandem_runtime.server.generation import ChoiceRequest, Generation
from tandem_runtime.server.intake import read_generation, wants_trace
from tandem_runtime.server.keys import POD, REQUEST_ID, SPAN
from tandem_runtime.server.logprobs import for_completion, for_prompt, joined
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.server.prompts import encode, encode_placed
from tandem_runtime.server.protocol.answers import Completion, CompletionChoice, CompletionLogprobs, Usage
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.completions import CompletionRequest
from tandem_runtime.server.protocol.convert import Limits, check_choices, check_token_ids, to_engine_requests
from tandem_runtime.server.sse import DONE, error_event, event
from tandem_runtime.server.tracing import describe
from tandem_runtime.text.detokenize import TokenBytes

DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    """What `echo` repeats; empty where it is not asked for."""
    token_ids: list[int]
    offsets: Sequence[int] = ()
    """Of each token in `text`, where its logprobs are asked for too."""


async def completions(request: web.Request) -> web.StreamResponse:
    arrived = time.perf_counter()
    pod = request.app[POD]
    given, past = await read_generation(request, pod)
    body = parse(CompletionRequest, given)
    model = pod.model(body.model)
    describe(request[SPAN], "text_completion", body, max_tokens=body.max_tokens)
    with pod.flight():
        check_choices(body.choices, len(body.prompts), model.info)
        prompts = [await _prompt(model, given, body) for given in body.prompts]
        tickets = pod.accept_tickets(request.headers.get(headers.TICKET))
        limits = _limits(body)
        max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        runs: list[list[ChoiceRequest]] = []
        for position, prompt in enumerate(prompts):
            engine_requests = to_engine_requests(
                body,
                prompt.token_ids,
                request_id=pod.engine_request_id(request[REQUEST_ID]),
                info=model.info,
                defaults=model.defaults,
                prompt_param="prompt",
                max_tokens=max(1, max_tokens),
                seed=past.origin.seed + position * body.choices,
                logprobs=body.logprobs,
                prompt_logprobs=body.logprobs if body.echo else None,
                deadline_s=pod.flags.request_timeout - past.elapsed_s,
                tickets=tickets if position == 0 else (),
                limits=limits,
                trace=request[SPAN].context,
            )
            runs.append(
                [
                    ChoiceRequest(_choice(position * body.choices + index, model, body, max_tokens), engine_request)
                    for index, engine_request in enumerate(engine_requests)
                ]
            )
        exchange = Exchange(
            pod=pod,
            past=past,
            generation=Generation(model.engine, pod.metrics, arrived=arrived),
            prompts=runs,
            format=CompletionFormat(
                id=f"cmpl-{past.origin.answer_id}",
                created=past.origin.created,
                model=body.model,
                echoed=[prompt for prompt in prompts for _ in range(body.choices)] if body.echo else None,
                token_bytes=model.tokenizer.token_bytes if body.logprobs is not None else None,
            ),
            stream=bool(body.stream),
            wants_trace=wants_trace(request),
            usage_in_chunks=body.usage_in_chunks,
        )
        return await exchange.answer(request)


async def _prompt(model: LoadedModel, given: str | list[int], body: CompletionRequest) -> Prompt:
    if isinstance(given, str):
        if body.echo and body.logprobs is not None:
            return Prompt(given, *await encode_placed(model, given))
        return Prompt(given if body.echo else "", await encode(model, given, add_special_tokens=True))
    check_token_ids(given, model.info, param="prompt")
    if not body.echo:
        return Prompt("", given)
    text, offsets = model.tokenizer.decode_placed(given)
    return Prompt(text, given, offsets)


def _limits(body: CompletionRequest) -> Limits:
    structure = body.structure()
    return Limits() if structure is None else Limits(combine(structure.part), structure.param)


def _choice(index: int, model: LoadedModel, body: CompletionRequest, max_tokens: int) -> Choice:
    return Choice(
        index,
        model.tokenizer.detokenizer(),
        stops=body.stops,
        min_tokens=body.min_tokens,
        max_tokens=max_tokens,
    )


class CompletionFormat:
    """Implements `exchange.AnswerFormat`."""

    keeps_logprobs = False

    def __init__(
        self,
        *,
        id: str,
        created: int,
        model: str,
        echoed: Sequence[Prompt] | None,
        token_bytes: TokenBytes | None,
    ) -> None:
        """`echoed`: the prompt of each choice; `token_bytes`: only when logprobs were asked for."""
        self._id = id
        self._model = model
        self._created = created
        self._echoed = echoed
        self._token_bytes = token_bytes
        self._collected = Collection()

    def opening(self, choice: Choice, usage: ChunkUsage) -> bytes:
        if self._echoed is None:
            return b""
        piece = CompletionChoice(
            index=choice.index,
            text=self._echo(choice),
            logprobs=self._prompt_logprobs(choice),
            finish_reason=None,
        )
        return event(self._answer([piece], usage))

    def chunk(self, choice: Choice, delta: Delta, usage: ChunkUsage, trace: Trace) -> bytes:
        piece = CompletionChoice(
            index=choice.index,
            text=delta.content,
            logprobs=self._logprobs(choice, delta.scored),
            finish_reason=delta.finish,
        )
        return event(self._answer([piece], usage, trace))

    def ending(self, usage: Usage | None, trace: Trace) -> bytes:
        return DONE if usage is None else event(self._answer([], usage, trace)) + DONE

    def failure(self, error: RequestError) -> bytes:
        return error_event(error)

    def collect(self, choice: Choice, delta: Delta) -> None:
        self._collected.add(choice, delta)

    def body(self, usage: Usage, trace: Trace) -> Completion:
        return self._answer([self._whole(one) for one in self._collected], usage, trace)

    def _answer(self, choices: list[CompletionChoice], usage: ChunkUsage, trace: Trace = UNSET) -> Completion:
        return Completion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage, tandem=trace
        )

    def _whole(self, one: Collected) -> CompletionChoice:
        prompt, content = self._prompt_logprobs(one.choice), self._logprobs(one.choice, one.scored)
        return CompletionChoice(
            index=one.choice.index,
            text=self._echo(one.choice) + "".join(one.content),
            logprobs=joined(prompt, content) if prompt is not None and content is not None else content,
            finish_reason=one.choice.finish,
        )

    def _echo(self, choice: Choice) -> str:
        return "" if self._echoed is None else self._echoed[choice.index].text

    def _logprobs(self, choice: Choice, scored: Sequence[Scored]) -> CompletionLogprobs | None:
        if self._token_bytes is None:
            return None
        return for_completion(scored, self._token_bytes, offset=len(self._echo(choice)))

    def _prompt_logprobs(self, choice: Choice) -> CompletionLogprobs | None:
        if self._token_bytes is None or self._echoed is None:
            return None
        prompt = self._echoed[choice.index]
        return for_prompt(prompt.token_ids, prompt.offsets, choice.prompt_logprobs or [], self._token_bytes)
