"""Requests of /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.protocol.base import JsonObject, Off, RequestModel, ignored, not_supported
from tandem_runtime.server.protocol.common import SampledRequest, TokenCount
from tandem_runtime.server.protocol.messages import Message
from tandem_runtime.server.protocol.response_input import InputItems, to_messages
from tandem_runtime.server.protocol.structure import (
    JsonObjectFormat,
    JsonSchemaFormat,
    JsonSchemaSpec,
    Structure,
    StructuredRequest,
    TextFormat,
)

Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]
_STATELESS = "nothing is stored; send the conversation so far in 'input'"


class SchemaFormat(JsonSchemaSpec):
    type: Literal["json_schema"]


class TextOptions(RequestModel):
    format: Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: None = not_supported("verbosity")


class Reasoning(RequestModel):
    effort: None = not_supported("switch thinking with 'enable_thinking'")
    summary: str | None = ignored("the reasoning itself is in the answer")
    generate_summary: str | None = ignored("the reasoning itself is in the answer")


class EventOptions(RequestModel):
    include_obfuscation: Off | None = not_supported("padding of events")


class ResponsesRequest(SampledRequest):
    input: str | InputItems
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[Include] | None = Field(None, description="Reasoning is in plain text, never encrypted.")
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    stream_options: EventOptions | None = None
    metadata: JsonObject | None = Field(None, description="Repeated in the answer.")
    enable_thinking: bool | None = Field(None, description="Short for the same in `chat_template_kwargs`.")
    chat_template_kwargs: JsonObject | None = Field(None, description="Variables of the model's chat template.")

    tools: Annotated[list[Any], Field(max_length=0)] | None = not_supported("tool calling")
    tool_choice: Literal["none", "auto"] | None = not_supported("tool calling")
    parallel_tool_calls: bool | None = ignored("there are no tools")
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
    def _consistent(self) -> ResponsesRequest:
        if self.enable_thinking is not None and "enable_thinking" in (self.chat_template_kwargs or {}):
            raise ValueError("'enable_thinking' is given twice: at top level and in 'chat_template_kwargs'")
        return self

    @property
    def messages(self) -> list[Message]:
        return to_messages(self.input, self.instructions)

    def structure(self) -> Structure | None:
        """Raises `RequestError`."""
        asked: Any = self.text.format if self.text is not None else None
        if isinstance(asked, SchemaFormat):
            asked = JsonSchemaFormat(type="json_schema", json_schema=asked)
        try:
            structure = StructuredRequest.model_construct(response_format=asked).structure()
        except RequestError as error:
            error.param = "text.format"
            raise
        return None if structure is None else structure._replace(param="text.format")

    @property
    def text_format(self) -> dict[str, Any]:
        """As the answer repeats it."""
        asked = self.text.format if self.text is not None else None
        return {"format": {"type": "text"} if asked is None else asked.model_dump(by_alias=True, exclude_none=True)}

    @property
    def alternatives(self) -> int | None:
        """As `SamplingParams.logprobs`: OpenAI gives logprobs where either field asks for them."""
        wanted = self.top_logprobs or "message.output_text.logprobs" in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None
