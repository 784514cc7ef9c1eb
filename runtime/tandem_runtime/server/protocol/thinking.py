"""Whether the model thinks before it answers, and for how long."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tandem_runtime.server.protocol.base import JsonObject, RequestModel

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
BUDGETS: dict[Effort, int | None] = {
    "none": 0,
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": 32768,
    "xhigh": None,
    "max": None,
}
"""Tokens of a thought; None: as many as the model likes."""

EFFORT_NOTE = "A budget by name; `none` switches thinking off."

_Budget = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ThinkingRequest(RequestModel):
    """APIs name the effort differently; each defines `effort` and says in `effort_param` what it is called."""

    effort_param: ClassVar[str]

    enable_thinking: bool | None = Field(None, description="Short for the same in `chat_template_kwargs`.")
    thinking_budget: _Budget | None = Field(
        None, description="Tokens after which a thought is closed; also in `chat_template_kwargs`."
    )
    chat_template_kwargs: JsonObject | None = Field(None, description="Variables of the model's chat template.")

    @property
    def effort(self) -> Effort | None:
        raise NotImplementedError

    @model_validator(mode="after")
    def _consistent_thinking(self) -> ThinkingRequest:
        variables = self.chat_template_kwargs or {}
        for name in ("enable_thinking", "thinking_budget"):
            if getattr(self, name) is not None and name in variables:
                raise ValueError(f"'{name}' is given twice: at top level and in 'chat_template_kwargs'")
        budget = variables.get("thinking_budget", 0)
        if type(budget) is not int or budget < 0:
            raise ValueError("'chat_template_kwargs.thinking_budget' must be a number of tokens")
        if self.effort is not None and self._budget_given is not None:
            raise ValueError(f"'{self.effort_param}' and 'thinking_budget' both limit the thought; give one")
        if self.effort == "none" and True in (self.enable_thinking, variables.get("enable_thinking")):
            raise ValueError(f"'{self.effort_param}' is 'none', but 'enable_thinking' is true")
        return self

    @property
    def _budget_given(self) -> int | None:
        if self.thinking_budget is not None:
            return self.thinking_budget
        found: int | None = (self.chat_template_kwargs or {}).get("thinking_budget")
        return found

    @property
    def budget(self) -> int | None:
        """Tokens of the thought; None: as many as the model likes."""
        return self._budget_given if self.effort is None else BUDGETS[self.effort]

    @property
    def budget_param(self) -> str:
        """The field that says `budget`."""
        return "thinking_budget" if self.effort is None else self.effort_param

    @property
    def thinks(self) -> bool | None:
        """As asked at top level; None: as the template has it."""
        return False if self.effort == "none" else self.enable_thinking

    @property
    def template_variables(self) -> dict[str, Any]:
        given = self.chat_template_kwargs or {}
        return {
            name: value
            for name, value in given.items()
            if name != "thinking_budget" and not (name == "enable_thinking" and self.effort == "none")
        }
