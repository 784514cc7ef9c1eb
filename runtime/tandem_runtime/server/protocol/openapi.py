"""The API's description (OpenAPI 3.1), from the very models that requests are checked with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from tandem_runtime.server.errors import ErrorBody
from tandem_runtime.server.protocol import answers, response_output
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.server.protocol.completions import CompletionRequest
from tandem_runtime.server.protocol.embeddings import EmbeddingsRequest
from tandem_runtime.server.protocol.responses import ResponsesRequest
from tandem_runtime.server.protocol.tokens import DetokenizeRequest, TokenizeRequest

_REF = "#/components/schemas/{}"
_ANSWERS: tuple[type[msgspec.Struct], ...] = (
    answers.ChatCompletion,
    answers.ChatCompletionChunk,
    answers.Completion,
    answers.ModelList,
    answers.ModelCard,
    response_output.Response,
    *response_output.EVENTS,
    answers.TokenizeAnswer,
    answers.DetokenizeAnswer,
    ErrorBody,
)


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    summary: str
    answer: type[msgspec.Struct] | None = None
    """None: plain text or JSON without a schema of its own."""
    request: type[BaseModel] | None = None
    chunks: tuple[type[msgspec.Struct], ...] = ()
    """Shapes of a stream's events."""
    always_refuses: bool = False
    refusals: tuple[int, ...] = ()


_READS_BODY = (400, 401, 404, 413, 415, 503)
_GENERATES = (*_READS_BODY, 500, 504)

_OPERATIONS = (
    Operation(
        *("post", "/v1/chat/completions", "Answer a conversation", answers.ChatCompletion, ChatRequest),
        chunks=(answers.ChatCompletionChunk,),
        refusals=_GENERATES,
    ),
    Operation(
        *("post", "/v1/completions", "Continue a text", answers.Completion, CompletionRequest),
        chunks=(answers.Completion,),
        refusals=_GENERATES,
    ),
    Operation(
        *("post", "/v1/responses", "Answer input items; nothing is stored", response_output.Response, ResponsesRequest),
        chunks=response_output.EVENTS,
        refusals=_GENERATES,
    ),
    Operation(
        *("post", "/v1/embeddings", "Refused: the models served here generate text", None, EmbeddingsRequest),
        always_refuses=True,
        refusals=_READS_BODY,
    ),
    Operation("get", "/v1/models", "List the served names", answers.ModelList, refusals=(401,)),
    Operation("get", "/v1/models/{model}", "Describe one served name", answers.ModelCard, refusals=(401, 404)),
    Operation(
        "post", "/tokenize", "Token ids of a text", answers.TokenizeAnswer, TokenizeRequest, refusals=_READS_BODY
    ),
    Operation(
        *("post", "/detokenize", "Text of token ids", answers.DetokenizeAnswer, DetokenizeRequest), refusals=_READS_BODY
    ),
    Operation("get", "/livez", "Whether the process runs"),
    Operation("get", "/readyz", "Whether requests are taken", refusals=(503,)),
)


def document() -> dict[str, Any]:
    requests = [operation.request for operation in _OPERATIONS if operation.request is not None]
    _, request_schemas = models_json_schema(
        [(model, "validation") for model in requests], ref_template=_REF.format("{model}")
    )
    _, answer_schemas = msgspec.json.schema_components(_ANSWERS, ref_template=_REF.format("{name}"))
    paths: dict[str, Any] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tandem", "version": "v1", "description": "OpenAI-compatible inference API."},
        "paths": paths,
        "components": {
            "schemas": {**request_schemas.get("$defs", {}), **answer_schemas},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _describe(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}{operation.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "responses": {
            **({} if operation.always_refuses else {"200": {"description": "Success", "content": _content(operation)}}),
            **{str(status): _refusal() for status in operation.refusals},
        },
    }
    if operation.request is not None:
        schema = {"$ref": _REF.format(operation.request.__name__)}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if "{model}" in operation.path:
        described["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return described


def _content(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": _REF.format(operation.answer.__name__)}}}
    if operation.chunks:
        shapes = [{"$ref": _REF.format(chunk.__name__)} for chunk in operation.chunks]
        data = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": shapes[0] if len(shapes) == 1 else {"oneOf": shapes},
        }
        # Before OpenAPI 3.2's `itemSchema`, tools read the schema of a stream as that of each event.
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    return content


def _refusal() -> dict[str, Any]:
    schema = {"$ref": _REF.format(ErrorBody.__name__)}
    return {"description": "Refused", "content": {"application/json": {"schema": schema}}}
