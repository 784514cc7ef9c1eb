"""Functions that the model may call, and how free it is to do so."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar import sources
from tandem_runtime.server.protocol.base import JsonObject, RequestModel

MAX_TOOLS = 128


class FunctionDefinition(RequestModel):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: JsonObject | None = Field(None, description="A JSON schema of an object; without it: any object.")
    strict: bool | None = Field(None, description="Arguments always follow `parameters`, with tool_choice auto too.")


class Tool(RequestModel):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(RequestModel):
    name: str


class NamedTool(RequestModel):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class ToolRequest(RequestModel):
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _consistent_tools(self) -> ToolRequest:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two of 'tools' have the same name")
        if self.tool_choice in (None, "none", "auto"):
            return self
        if not names:
            raise ValueError("'tool_choice' asks for a call, but there are no 'tools'")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"'tool_choice' names '{self.tool_choice.function.name}', which is none of 'tools'")
        return self

    @property
    def callable_functions(self) -> list[FunctionDefinition]:
        """Those that the answer may call."""
        functions = [tool.function for tool in self.tools or ()]
        if self.tool_choice == "none":
            return []
        if isinstance(self.tool_choice, NamedTool):
            return [function for function in functions if function.name == self.tool_choice.function.name]
        return functions

    @property
    def must_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def most_calls(self) -> int | None:
        return 1 if self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedTool) else None

    @property
    def template_tools(self) -> list[dict[str, Any]] | None:
        """As a chat template reads them; all of them, so that prompts of one conversation share their beginning."""
        if not self.callable_functions:
            return None
        return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in self.tools or ()]

    def call_grammar(self, *, beside_format: bool) -> sources.Part | None:
        """What calls must look like; None where the model is free. Raises `GrammarError`.

        `beside_format`: what is not a call follows a grammar of its own.
        """
        functions = self.callable_functions
        only_calls = self.must_call or beside_format
        if not functions or not (only_calls or any(function.strict for function in functions)):
            return None
        exact = self.must_call
        try:
            schemas = {f.name: _arguments(f, exact=exact or bool(f.strict)) for f in functions}
            sources.check_size(schemas)
            parts = {f.name: sources.of_json_schema(schemas[f.name], strict=bool(f.strict)) for f in functions}
            return sources.of_tool_calls(parts, text_between=not only_calls, most_one=self.most_calls == 1)
        except (GrammarError, ValueError, RecursionError) as error:
            raise GrammarError(f"'tools': {error}", param="tools") from error


def _arguments(function: FunctionDefinition, *, exact: bool) -> dict[str, Any]:
    schema = function.parameters or {}
    if schema.get("type", "object") != "object":
        raise GrammarError(f"the parameters of '{function.name}' must be an object, not {schema['type']!r}")
    return (schema if exact else {}) | {"type": "object"}
