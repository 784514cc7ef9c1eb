"""Functions that the model may call, and how free it is to do so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar import sources
from tandem_runtime.server.protocol.base import JsonObject, RequestModel

MAX_TOOLS = 128


def _of_an_object(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type", "object") != "object":
        raise ValueError(f"must describe an object: 'type' is {schema['type']!r}")
    return schema


class FunctionDefinition(RequestModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: Annotated[JsonObject, AfterValidator(_of_an_object)] | None = Field(
        None, description="A JSON schema of an object; without it: any object."
    )
    strict: bool | None = Field(
        None,
        description="Arguments always follow `parameters`, with tool_choice auto too. `false`: what cannot be enforced "
        "is ignored, even where a call is required.",
    )


class NamedFunction(RequestModel):
    name: str


CHOICE_NOTE = (
    "A mode, or one function; `allowed_tools` is refused. Beside a format for the answer, `auto` gives either calls or "
    "that, and a call that must be made comes alone."
)
ToolMode = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What the answer may and must call."""

    functions: Sequence[FunctionDefinition]
    """All that the request defines."""
    callable: Sequence[FunctionDefinition]
    must_call: bool
    most_calls: int | None

    @classmethod
    def asked(
        cls,
        functions: Sequence[FunctionDefinition],
        choice: ToolMode | NamedFunction | None,
        *,
        parallel: bool | None,
    ) -> ToolUse:
        """Raises `ValueError` for names that do not fit together."""
        names = [function.name for function in functions]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"'tools' has two functions named '{twice}'")
        most_calls = 1 if parallel is False else None
        if choice == "none":
            return cls(functions, (), False, most_calls)
        if choice in (None, "auto"):
            return cls(functions, functions, False, most_calls)
        if not names:
            raise ValueError("'tool_choice' asks for a call, but there are no 'tools'")
        if isinstance(choice, NamedFunction):
            if choice.name not in names:
                raise ValueError(f"'tool_choice' names '{choice.name}', which is none of 'tools'")
            return cls(functions, [functions[names.index(choice.name)]], True, 1)
        return cls(functions, functions, True, most_calls)

    @property
    def for_template(self) -> list[dict[str, Any]] | None:
        """As a chat template reads them; all of them, so that prompts of one conversation share their beginning."""
        if not self.callable:
            return None
        fields = {"name", "description", "parameters"}
        return [
            {"type": "function", "function": function.model_dump(include=fields, exclude_none=True)}
            for function in self.functions
        ]

    def grammar(self, *, beside_format: bool) -> sources.Part | None:
        """What calls must look like; None where the model is free. Raises `GrammarError`.

        `beside_format`: what is not a call follows a grammar of its own.
        """
        only_calls = self.must_call or beside_format
        if not self.callable or not (only_calls or any(function.strict for function in self.callable)):
            return None
        try:
            schemas = {f.name: _arguments(f, free=not (self.must_call or f.strict)) for f in self.callable}
            sources.check_size(schemas)
            parts = {f.name: self._part(f, schemas[f.name]) for f in self.callable}
            return sources.of_tool_calls(parts, text_between=not only_calls, most_one=self.most_calls == 1)
        except (GrammarError, ValueError, RecursionError) as error:
            raise GrammarError(f"'tools': {error}", param="tools") from error

    def _part(self, function: FunctionDefinition, schema: dict[str, Any]) -> sources.Part:
        exact = self.must_call if function.strict is None else function.strict
        try:
            return sources.of_json_schema(schema, strict=exact, foreign_formats=not function.strict)
        except GrammarError as error:
            raise GrammarError(f"in the parameters of '{function.name}', {error}") from error


def _arguments(function: FunctionDefinition, *, free: bool) -> dict[str, Any]:
    return ({} if free else function.parameters or {}) | {"type": "object"}
