"""Requests of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tandem_runtime.core.errors import RequestError
from tandem_runtime.core.sampling import MAX_LOGPROBS
from tandem_runtime.server.protocol.base import JsonObject, Off, RequestModel, ignored, not_supported
from tandem_runtime.server.protocol.common import TokenCount
from tandem_runtime.server.protocol.conversation import Conversation, ConversationRequest
from tandem_runtime.server.protocol.response_input import InputItems, check_calls, to_messages
from tandem_runtime.server.protocol.response_tools import FunctionTools, NamedFunctionTool
from tandem_runtime.server.protocol.structure import (
    JsonObjectFormat,
    JsonSchemaFormat,
    JsonSchemaSpec,
    Structure,
    StructuredRequest,
    TextFormat,
)
from tandem_runtime.server.protocol.thinking import EFFORT_NOTE, Effort
from tandem_runtime.server.protocol.tools import CHOICE_NOTE, ToolMode, ToolUse

Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
_STATELESS = "nothing is stored; send the conversation so far in 'input'"


class SchemaFormat(JsonSchemaSpec):
    type: Literal["json_schema"]


class TextOptions(RequestModel):
    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = not_supported("say in 'instructions' how long the answer is to be")


class Reasoning(RequestModel):
    effort: Effort | None = Field(None, description=EFFORT_NOTE)
    context: Literal["auto"] | None = not_supported("the chat template decides which thoughts of 'input' it reads")
    mode: Literal["standard"] | None = not_supported("there is one mode")
    summary: str | None = ignored("the reasoning itself is in the answer")
    generate_summary: str | None = ignored("the reasoning itself is in the answer")


class EventOptions(RequestModel):
    include_obfuscation: Off | None = not_supported("padding of events")


class ResponsesRequest(ConversationRequest):
    effort_param: ClassVar[str] = "reasoning.effort"

    input: str | InputItems
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: list[Include] | None = Field(None, description="Reasoning is in plain text, never encrypted.")
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    stream_options: EventOptions | None = None
    metadata: JsonObject | None = Field(None, description="Repeated in the answer.")

    tools: FunctionTools | None = None
    tool_choice: ToolMode | NamedFunctionTool | None = Field(None, description=CHOICE_NOTE)
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = ignored("there are no built-in tools")

    previous_response_id: None = not_supported(_STATELESS)
    conversation: None = not_supported(_STATELESS)
    prompt: None = not_supported("prompt templates; send the text in 'input'")
    background: Off | None = not_supported("background answers; use 'stream'")
    background_options: None = not_supported("background answers; use 'stream'")
    truncation: Literal["disabled"] | None = not_supported("dropping items to fit; shorten 'input'")
    context_management: None = not_supported("compaction; shorten 'input'")
    image: None = not_supported("images")
    access_programs: None = not_supported("access programs")

    @model_validator(mode="after")
    def _consistent_tools(self) -> ResponsesRequest:
        self._tool_use()
        check_calls(self.input)
        return self

    @property
    def effort(self) -> Effort | None:
        return None if self.reasoning is None else self.reasoning.effort

    def to_conversation(self) -> Conversation:
        scored = self.top_logprobs or "message.output_text.logprobs" in (self.include or ())
        return Conversation(
            messages=to_messages(self.input, self.instructions),
            messages_param="input",
            tools=self._tool_use(),
            structure=self._structure(),
            max_tokens=self.max_output_tokens,
            max_tokens_param="max_output_tokens",
            # OpenAI gives logprobs where either field asks for them.
            logprobs=(self.top_logprobs or 0) if scored else None,
        )

    def _tool_use(self) -> ToolUse:
        return ToolUse.asked(self.tools or (), self.tool_choice, parallel=self.parallel_tool_calls)

    def _structure(self) -> Structure | None:
        asked: Any = self.text.format if self.text is not None else None
        if isinstance(asked, SchemaFormat):
            asked = JsonSchemaFormat(type="json_schema", json_schema=asked)
        try:
            structure = StructuredRequest.model_construct(response_format=asked).structure()
        except RequestError as error:
            error.param = "text.format"
            raise
        return None if structure is None else structure._replace(param="text.format")
