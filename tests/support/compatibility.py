"""docs/openai-compatibility.md, made from the request models and the official client's parameter types.

PYTHONPATH=tests:runtime:contract:kernels python -m support.compatibility > docs/openai-compatibility.md
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from openai.types import chat, completion_create_params, embedding_create_params, responses, shared_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params
from pydantic.fields import FieldInfo
from tandem_runtime.server.protocol import common, messages, response_input, response_tools, tools
from tandem_runtime.server.protocol import responses as own_responses
from tandem_runtime.server.protocol.base import RequestModel
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.server.protocol.completions import CompletionRequest
from tandem_runtime.server.protocol.embeddings import EmbeddingsRequest
from tandem_runtime.server.protocol.responses import ResponsesRequest

Status = Literal["honoured", "ignored", "refused"]
_IGNORED = "Accepted and ignored: "
_HEAD = """\
# What of OpenAI's API is served

Every request field that the official Python client (`openai` {version}) knows, and what becomes of it here. This page
is made from the server's own request models by `tests/support/compatibility.py`, and a test compares it with both.

- **honoured**: does what OpenAI's reference says.
- **ignored**: accepted, changes nothing; the note says why.
- **refused**: a 400 that names the field. Values that ask for nothing (null, and those named) are accepted, so that
  clients which always send the field work.

Fields that are not listed are refused by name too. Answers, streams and errors have OpenAI's shapes; `GET /v1/models`
and `GET /v1/models/{{model}}` take no fields. The gateway serves the same API, with prefill and decode apart too.
"""


@dataclass(frozen=True)
class Section:
    title: str
    model: type[RequestModel]
    params: Any
    """The client's TypedDict."""
    note: str = ""
    always: Status | None = None
    """Of every field, whatever the model says."""


SECTIONS = (
    Section("POST /v1/chat/completions", ChatRequest, chat_params.CompletionCreateParamsStreaming),
    Section("`stream_options`", common.StreamOptions, chat.ChatCompletionStreamOptionsParam),
    Section("Functions in `tools`", tools.FunctionDefinition, shared_params.FunctionDefinition),
    Section("System and developer messages", messages.SystemMessage, chat.ChatCompletionSystemMessageParam),
    Section(
        "User messages",
        messages.UserMessage,
        chat.ChatCompletionUserMessageParam,
        "Content is text; other parts are refused.",
    ),
    Section("Assistant messages", messages.AssistantMessage, chat.ChatCompletionAssistantMessageParam),
    Section("Tool messages", messages.ToolMessage, chat.ChatCompletionToolMessageParam),
    Section("POST /v1/completions", CompletionRequest, completion_create_params.CompletionCreateParamsStreaming),
    Section(
        "POST /v1/responses",
        ResponsesRequest,
        response_create_params.ResponseCreateParamsStreaming,
        "Nothing is stored: send the whole conversation in `input`. Reasoning is an item of its own, in plain text. "
        "`GET`, `DELETE` and the other `/v1/responses/...` routes do not exist.",
    ),
    Section("`stream_options` of a response", own_responses.EventOptions, response_create_params.StreamOptions),
    Section(
        "Functions in `tools` of a response",
        response_tools.FunctionTool,
        responses.FunctionToolParam,
        "All other kinds of tools are refused. Without `strict` a function is strict where it must be called.",
    ),
    Section("`reasoning`", own_responses.Reasoning, shared_params.Reasoning),
    Section("`text`", own_responses.TextOptions, responses.ResponseTextConfigParam),
    Section("Message items", response_input.MessageItem, responses.ResponseOutputMessageParam),
    Section("Reasoning items", response_input.ReasoningItem, responses.ResponseReasoningItemParam),
    Section("Function calls", response_input.FunctionCallItem, responses.ResponseFunctionToolCallParam),
    Section(
        "Outputs of functions",
        response_input.FunctionOutputItem,
        responses.response_input_item_param.FunctionCallOutput,
        "All other kinds of items are refused.",
    ),
    Section(
        "POST /v1/embeddings",
        EmbeddingsRequest,
        embedding_create_params.EmbeddingCreateParams,
        "Always refused (`embeddings_not_supported`): the models served here generate text. Use a server of an "
        "embedding model, such as Qwen3-Embedding.",
        always="refused",
    ),
)


@dataclass(frozen=True)
class Row:
    name: str
    status: Status
    note: str


def rows(section: Section) -> list[Row]:
    """OpenAI's fields, in alphabetical order."""
    fields = section.model.model_fields
    names = sorted(openai_fields(section.params))
    if section.always is not None:
        return [Row(name, section.always, "") for name in names]
    return [_row(name, fields.get(name)) for name in names]


def own_fields(section: Section) -> list[Row]:
    """Those that OpenAI does not have; what only asks for nothing is not worth a line."""
    known = openai_fields(section.params)
    made = [_row(name, field) for name, field in section.model.model_fields.items() if name not in known]
    return [row for row in made if row.status == "honoured"]


def openai_fields(params: Any) -> set[str]:
    return set(typing.get_type_hints(params))


def page(version: str) -> str:
    return _HEAD.format(version=version) + "".join(_section(section) for section in SECTIONS)


def _section(section: Section) -> str:
    level = "##" if section.title.startswith("POST") else "###"
    lines = ["", f"{level} {section.title}", *(["", section.note] if section.note else []), ""]
    lines += _table(rows(section))
    if own := own_fields(section):
        lines += ["", "Beyond OpenAI:", "", *_table(own)]
    return "\n".join(lines) + "\n"


def _table(listed: list[Row]) -> Iterator[str]:
    yield "| field | | |"
    yield "|---|---|---|"
    for row in listed:
        yield f"| `{row.name}` | {row.status} | {row.note} |"


def _row(name: str, field: FieldInfo | None) -> Row:
    if field is None:
        return Row(name, "refused", "")
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "x-not-supported" in extra:
        harmless = ", ".join(f"`{value}`" for value in _harmless(field))
        return Row(name, "refused", f"{extra['x-not-supported']}{f'; accepted: {harmless}' if harmless else ''}")
    description = field.description or ""
    if description.startswith(_IGNORED):
        return Row(name, "ignored", description.removeprefix(_IGNORED).removesuffix("."))
    return Row(name, "honoured", description)


def _harmless(field: FieldInfo) -> Iterator[str]:
    """Values other than null, as JSON."""
    for part in _members(field.annotation):
        while typing.get_origin(part) is typing.Annotated:
            part = typing.get_args(part)[0]
        if typing.get_origin(part) is Literal:
            yield from (str(value).lower() for value in typing.get_args(part))


def _members(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _members(part)
    else:
        yield annotation


if __name__ == "__main__":
    from importlib.metadata import version

    print(page(version("openai").partition(".")[0] + ".x"), end="")
