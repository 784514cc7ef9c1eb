"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from msgspec import UNSET

from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.choice import Choice, Delta, Scored
from tandem_runtime.server.collected import Collected, Collection
from tandem_runtime.server.conversation import Asked, converse
from tandem_runtime.server.exchange import ChunkUsage, Trace
from tandem_runtime.server.logprobs import for_chat
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
    call_id,
)
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.server.sse import DONE, error_event, event
from tandem_runtime.text.tool_calls import CallDelta


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await converse(request, ChatRequest, ChatFormat)


class ChatFormat:
    """Implements `exchange.AnswerFormat`."""

    keeps_logprobs = False

    def __init__(self, asked: Asked[ChatRequest]) -> None:
        self._id = f"chatcmpl-{asked.answer_id}"
        self._model = asked.body.model
        self._created = asked.created
        self._token_bytes = asked.token_bytes
        self._collected = Collection()

    def opening(self, choice: Choice, usage: ChunkUsage) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        return event(self._chunk([ChatChunkChoice(index=choice.index, delta=delta)], usage))

    def chunk(self, choice: Choice, delta: Delta, usage: ChunkUsage, trace: Trace) -> bytes:
        # A chunk has parts of one call at most, as OpenAI's do: LlamaIndex reads no more.
        deltas = [ChatDelta(tool_calls=[self._piece(choice, call)]) for call in delta.calls] or [ChatDelta()]
        deltas[0].content = delta.content or UNSET
        deltas[0].reasoning_content = delta.reasoning or UNSET
        *before, last = [ChatChunkChoice(index=choice.index, delta=one) for one in deltas]
        last.logprobs = self._logprobs(delta.scored) if delta.scored else None
        last.finish_reason = delta.finish
        return b"".join(event(self._chunk([one], usage)) for one in before) + event(self._chunk([last], usage, trace))

    def ending(self, usage: Usage | None, trace: Trace) -> bytes:
        return DONE if usage is None else event(self._chunk([], usage, trace)) + DONE

    def failure(self, error: RequestError) -> bytes:
        return error_event(error)

    def collect(self, choice: Choice, delta: Delta) -> None:
        self._collected.add(choice, delta)

    def body(self, usage: Usage, trace: Trace) -> ChatCompletion:
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._whole(one) for one in self._collected],
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
                tool_calls=calls or UNSET,
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
            id=call_id(self._id, choice.index, call.index),
            type="function",
        )

    def _calls(self, one: Collected) -> list[MessageToolCall]:
        calls: list[MessageToolCall] = []
        for delta in one.calls:
            if delta.name is not None:
                function = CalledFunction(arguments="", name=delta.name)
                calls.append(MessageToolCall(id=call_id(self._id, one.choice.index, delta.index), function=function))
            calls[delta.index].function.arguments += delta.arguments
        return calls

    def _logprobs(self, scored: Sequence[Scored]) -> ChatLogprobs | None:
        return None if self._token_bytes is None else for_chat(scored, self._token_bytes)
