"""Tools of /v1/responses: functions, described without the level that chat completions put around them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tandem_runtime.server.protocol.base import JsonObject, Off, RequestModel, ignored, not_supported
from tandem_runtime.server.protocol.tools import MAX_TOOLS, FunctionDefinition, NamedFunction


class _Function(RequestModel):
    """A mixin, so that an error names `type` before what functions have and other tools lack."""

    type: Literal["function"]


class FunctionTool(FunctionDefinition, _Function):
    output_schema: JsonObject | None = ignored("outputs are taken as they come")
    allowed_callers: list[Literal["direct"]] | None = not_supported("calls from programs")
    defer_loading: Off | None = not_supported("search for tools")


class NamedFunctionTool(NamedFunction, _Function):
    pass


FunctionTools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)]
