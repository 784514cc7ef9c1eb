"""The structures that an answer can be asked to have, under the names that OpenAI, vLLM and SGLang give them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from tandem_runtime.core.errors import GrammarError, RequestError
from tandem_runtime.grammar import sources
from tandem_runtime.server.protocol.base import JsonObject, On, RequestModel

MAX_PATTERN = 16 * 1024

Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN)]
Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)]


def _schema(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        parsed = orjson.loads(given)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ValueError("must be a JSON schema: an object")
    return parsed


Schema = Annotated[JsonObject | str, AfterValidator(_schema)]
"""An object, or the same as JSON text."""


class TextFormat(RequestModel):
    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    type: Literal["json_object"]


class JsonSchemaSpec(RequestModel):
    model_config = ConfigDict(populate_by_name=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Refuse schema keywords that cannot be enforced.")


class JsonSchemaFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(RequestModel):
    """vLLM's field; exactly one of these."""

    model_config = ConfigDict(populate_by_name=True)

    json_: Schema | None = Field(None, alias="json", description="A JSON schema.")
    json_object: On | None = None
    regex: Pattern | None = Field(None, description="In Rust's syntax, without look-around or back references.")
    choice: Choices | None = None
    grammar: Pattern | None = Field(None, description="Lark (llguidance's dialect) or GBNF.")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1 or None in self.model_dump(include=self.model_fields_set).values():
            raise ValueError("give exactly one of 'json', 'json_object', 'regex', 'choice' and 'grammar'")
        return self


class Structure(NamedTuple):
    part: sources.Part
    param: str
    """The field that asked for it."""


class StructuredRequest(RequestModel):
    """Fields of chat completions and completions alike."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="As vLLM has it.")
    guided_json: Schema | None = Field(None, description="vLLM's older name of `structured_outputs.json`.")
    guided_regex: Pattern | None = Field(None, description="The same of `structured_outputs.regex`.")
    guided_choice: Choices | None = Field(None, description="The same of `structured_outputs.choice`.")
    guided_grammar: Pattern | None = Field(None, description="The same of `structured_outputs.grammar`.")
    regex: Pattern | None = Field(None, description="SGLang's name of `structured_outputs.regex`.")
    ebnf: Pattern | None = Field(None, description="SGLang's name of `structured_outputs.grammar`.")

    def structure(self) -> Structure | None:
        """Raises `RequestError`."""
        asked = [*self._formats(), *self._guides()]
        if len(asked) > 1:
            names = " and ".join(f"'{param}'" for param, _ in asked[:2])
            raise RequestError(f"{names} both ask for a structure; give one", param=asked[1][0])
        if not asked:
            return None
        param, (kind, value) = asked[0]
        try:
            sources.check_size(value)
            return Structure(_part(kind, value), param)
        except (GrammarError, ValueError, RecursionError) as error:
            raise GrammarError(f"'{param}': {error}", param=param) from error

    def _formats(self) -> list[tuple[str, tuple[str, Any]]]:
        match self.response_format:
            case JsonObjectFormat():
                return [("response_format", ("json_object", True))]
            case JsonSchemaFormat(json_schema=spec):
                kind = "strict_json" if spec.strict else "json"
                return [("response_format.json_schema.schema", (kind, spec.schema_ or {}))]
        return []

    def _guides(self) -> list[tuple[str, tuple[str, Any]]]:
        given: list[tuple[str, tuple[str, Any]]] = []
        if (outputs := self.structured_outputs) is not None:
            kinds = {
                "json": outputs.json_,
                "json_object": outputs.json_object,
                "regex": outputs.regex,
                "choice": outputs.choice,
                "grammar": outputs.grammar,
            }
            given += [(f"structured_outputs.{kind}", (kind, value)) for kind, value in kinds.items()]
        given += [
            ("guided_json", ("json", self.guided_json)),
            ("guided_regex", ("regex", self.guided_regex)),
            ("guided_choice", ("choice", self.guided_choice)),
            ("guided_grammar", ("grammar", self.guided_grammar)),
            ("regex", ("regex", self.regex)),
            ("ebnf", ("grammar", self.ebnf)),
        ]
        return [(param, (kind, value)) for param, (kind, value) in given if value is not None]


def _part(kind: str, value: Any) -> sources.Part:
    match kind:
        case "json" | "strict_json":
            return sources.of_json_schema(value, strict=kind == "strict_json")
        case "json_object":
            return sources.of_json_object()
        case "regex":
            return sources.of_regex(value)
        case "choice":
            return sources.of_choices(value)
        case _:
            return sources.of_grammar(value)
