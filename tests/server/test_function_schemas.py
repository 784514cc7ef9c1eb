"""What becomes of a function's schema, by `tool_choice` and `strict`: followed exactly, as far as it can be, or not."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import pathlib
import uuid
from typing import Any, Literal

import aiohttp
import pytest
from pydantic import AnyUrl, BaseModel, Field, SecretStr
from server.refusals import CHAT, HELLO, refused
from support.slow_grammars import ByteCompiler
from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar import sources
from tandem_runtime.server.protocol.tools import FunctionDefinition, NamedFunction, ToolMode, ToolUse

COMPILER = ByteCompiler()
FORCED = ["required", NamedFunction(name="f")]


def grammar(
    schema: dict[str, Any], choice: ToolMode | NamedFunction, *, strict: bool | None = None
) -> sources.Part | None:
    functions = [FunctionDefinition(name="f", parameters=schema, strict=strict)]
    return ToolUse.asked(functions, choice, parallel=False).grammar(beside_format=False)


def accepts(part: sources.Part | None, arguments: Any) -> bool:
    assert part is not None
    matcher = COMPILER.compile(sources.combine(part))
    call = f'<tool_call>\n{{"name": "f", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'
    told = list(call.encode())
    return matcher.try_consume_tokens(told) == len(told) and matcher.is_accepting()


def of(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a/b": {"type": "array", "items": schema}}, "required": ["a/b"], **more}


UNENFORCEABLE: dict[str, tuple[dict[str, Any], Any]] = {
    "uniqueItems": ({"type": "array", "uniqueItems": True}, [1, 1]),
    "if": ({"type": "integer", "if": {"minimum": 3}, "then": {"multipleOf": 2}}, 5),
    "not": ({"type": "string", "not": {"const": "a"}}, "a"),
    "propertyNames": ({"type": "object", "propertyNames": {"enum": ["low", "high"]}}, {"b": 1}),
    "minProperties": ({"type": "object", "minProperties": 2}, {"a": 1, "\u00e4": 1}),
    "oneOf": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, 1),
    "format": ({"type": "string", "format": "uri-reference"}, "::"),
    "pattern": ({"type": "string", "pattern": "^(?!a)"}, "a"),
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {"type": "null"}, "b$": {}}}, {"a": 1}),
}


@pytest.mark.parametrize("choice", FORCED, ids=["required", "named"])
@pytest.mark.parametrize("keyword", UNENFORCEABLE)
def test_a_call_that_must_be_made_is_exact_or_refused(keyword: str, choice: Any) -> None:
    """Symptom: with `required`, [1, 1] was an argument that had `uniqueItems`, unless the function was strict."""
    schema, violating = UNENFORCEABLE[keyword]
    with pytest.raises(GrammarError) as error:
        grammar(of(schema), choice)
    assert error.value.param == "tools"
    for word in ("'f'", keyword, "#/properties/a~1b/items", '"strict": false'):
        assert word in str(error.value)
    # The remedy that it names: everything else is followed still.
    loose = grammar(of(schema), choice, strict=False)
    assert accepts(loose, {"a/b": [violating]})
    assert not accepts(loose, {"a/b": 1})
    assert not accepts(loose, {})


@pytest.mark.parametrize("keyword", UNENFORCEABLE)
def test_a_call_that_may_be_made_is_free_unless_strict(keyword: str) -> None:
    schema, _ = UNENFORCEABLE[keyword]
    assert grammar(of(schema), "auto") is None
    assert grammar(of(schema), "none", strict=True) is None
    with pytest.raises(GrammarError, match=keyword):
        grammar(of(schema), "auto", strict=True)


async def test_the_refusal_is_a_400(http: aiohttp.ClientSession) -> None:
    schema, _ = UNENFORCEABLE["uniqueItems"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": of(schema)}}]
    body = {"model": "tiny", "messages": HELLO, "tools": tools, "tool_choice": "required"}
    status, error = await refused(http, CHAT, body)
    assert (status, error["param"], error["code"]) == (400, "tools", "invalid_grammar")
    assert "'f', 'uniqueItems' at #/properties/a~1b/items cannot be enforced" in error["message"]


def test_a_schema_that_nothing_satisfies_is_told_in_the_clients_words() -> None:
    """The error quoted the grammar around it, with its private options."""
    never = {
        "type": "object",
        "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 2}},
        "required": ["a"],
    }
    with pytest.raises(GrammarError) as error:
        accepts(grammar(never, "required"), {"a": ""})
    assert "minLength" in str(error.value) or "satisf" in str(error.value).lower()
    assert not any(ours in str(error.value) for ours in ("%json", "args_", "x-guidance"))


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Address(BaseModel):
    """Where somebody lives."""

    street: str = Field(description="With its number.", examples=["High St 1"], max_length=20)
    code: str = Field("00000", pattern=r"^\d{5}$")


class Order(BaseModel):
    """What people write into a tool's signature."""

    query: str
    limit: int = Field(10, ge=1, le=100)
    when: datetime.datetime | None = None
    id: uuid.UUID
    price: decimal.Decimal = decimal.Decimal("1.5")
    url: AnyUrl
    path: pathlib.Path = pathlib.Path("/x")
    secret: SecretStr
    data: bytes = b""
    level: Level = Level.LOW
    tags: list[str] = Field(default_factory=list, max_length=2)
    homes: dict[str, Address] = {}
    anything: Any = None
    pair: tuple[int, str] = (1, "a")
    mode: Literal["a", "b"] = "a"
    either: int | Address = 1


ORDER = {"query": "x", "id": str(uuid.UUID(int=1)), "url": "https://example.com/a", "path": "/y", "secret": "s"}
NODE = {"oneOf": [{"$ref": "#"}, {"type": "null"}]}

AS_WRITTEN: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "pydantic": (Order.model_json_schema(), ORDER | {"either": {"street": "A 1"}}, ORDER | {"either": {"code": "1"}}),
    "LangChain": (
        {
            "type": "object",
            "properties": {
                "query": {"description": "what for", "type": "string"},
                "filters": {
                    "anyOf": [{"additionalProperties": {"type": "string"}, "type": "object"}, {"type": "null"}],
                    "default": None, "description": "which",
                },
            },
            "required": ["query"],
        },
        {"query": "a", "filters": {"b": "c"}},
        {"query": "a", "filters": {"b": 1}},
    ),
    "zod 3, as MCP servers have it": (
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "type": "object",
            "properties": {
                "path": {"type": "string", "default": ".", "markdownDescription": "Of a file."},
                "edits": {"type": "array", "items": {"type": "object", "properties": {"old": {"type": "string"}},
                          "required": ["old"], "additionalProperties": False}},
            },
            "required": ["path"],
            "additionalProperties": False,
        },
        {"path": "a", "edits": [{"old": "b"}]},
        {"path": "a", "edits": [{}]},
    ),
    "zod 4": (
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "n": {"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991},
                "env": {
                    "type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "null"},
                },
                "key": {"type": "string", "format": "ulid", "pattern": "^[0-9A-HJKMNP-TV-Z]{2}$"},
            },
            "required": ["n"],
            "additionalProperties": False,
        },
        {"n": 7, "env": {"a": None}, "key": "01"},
        {"n": 7, "key": "ul"},
    ),
    "schemars": (
        {
            "type": "object",
            "properties": {
                "count": {"type": "integer", "format": "uint32", "minimum": 0.0, "default": 18446744073709551615},
                "name": {"type": ["string", "null"]},
            },
            "required": ["count"],
        },
        {"count": 3, "name": None},
        {"count": -1},
    ),
    "OpenAPI": (
        {
            "type": "object",
            "properties": {
                "id": {"type": "integer", "format": "int64", "example": 10, "x-order": 1, "readOnly": True},
                "status": {"type": "string", "enum": ["available", "sold"], "deprecated": False},
                "photo": {"type": "string", "format": "binary", "xml": {"name": "photo"}},
                "name": {"type": "string", "pattern": "^[^\\x00-\\x1f\\x7f]{1,9}$", "nullable": True},
            },
            "required": ["id"],
            "externalDocs": {"url": "https://example.com"},
        },
        {"id": 1, "status": "sold", "photo": "x", "name": "n\xe9"},
        {"id": 1, "status": "lost"},
    ),
    "a linked list": (
        {"type": "object", "properties": {"next": NODE}, "required": ["next"], "additionalProperties": False},
        {"next": {"next": None}},
        {"next": 1},
    ),
    "no parameters": ({}, {"x": 1}, []),
}  # fmt: skip


@pytest.mark.parametrize("choice", FORCED, ids=["required", "named"])
@pytest.mark.parametrize("origin", AS_WRITTEN)
def test_schemas_as_others_write_them_are_followed_exactly(origin: str, choice: Any) -> None:
    schema, valid, invalid = AS_WRITTEN[origin]
    part = grammar(schema, choice)
    assert accepts(part, valid)
    assert not accepts(part, invalid)


def test_a_format_that_nobody_checks_is_no_obstacle_unless_the_function_is_strict() -> None:
    schema = of({"type": "string", "format": "ulid"})
    assert accepts(grammar(schema, "required"), {"a/b": ["x"]})
    with pytest.raises(GrammarError, match="the format 'ulid'"):
        grammar(schema, "required", strict=True)


def test_two_functions_of_one_name_are_named() -> None:
    functions = [FunctionDefinition(name=name) for name in ("a", "b", "b")]
    with pytest.raises(ValueError, match=r"^'tools' has two functions named 'b'$"):
        ToolUse.asked(functions, None, parallel=None)


@pytest.mark.parametrize("kind", ["array", ["object", "null"]])
@pytest.mark.parametrize("choice", [None, "auto", "none", "required"])
async def test_parameters_describe_an_object_whatever_the_choice(
    http: aiohttp.ClientSession, kind: Any, choice: str | None
) -> None:
    """Symptom: with `auto`, parameters of the type array were taken."""
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": kind}}} for name in "ab"]
    tools[0]["function"]["parameters"] = {}  # type: ignore[index]
    status, error = await refused(
        http, CHAT, {"model": "tiny", "messages": HELLO, "tools": tools, "tool_choice": choice}
    )
    assert (status, error["param"]) == (400, "tools[1].function.parameters")
    assert "must describe an object: 'type' is " in error["message"]


def test_size_is_what_the_client_wrote() -> None:
    """Symptom: descriptions aside, 11,000 Chinese characters were too large. Cause: each was counted as its escape."""
    names = [f"\u7684{number}" + "\u7684" * 40 for number in range(1_000)]
    assert accepts(grammar(of({"enum": names}), "required"), {"a/b": [names[7]]})
    with pytest.raises(GrammarError, match=r"'tools': has \d{5} characters; at most 65536 are allowed"):
        grammar(of({"enum": names * 2}), "required")
