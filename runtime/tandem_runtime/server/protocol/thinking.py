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
Switch = Literal["enable_thinking", "thinking_budget"]
SWITCHES: tuple[Switch, ...] = ("enable_thinking", "thinking_budget")
"""May be given in `chat_template_kwargs` too."""

_Budget = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ThinkingRequest(RequestModel):
    """What asks for a thought is refused where there can be none: the request switches it off, or
    the model does not think. What asks for none is always in order.

    APIs name the effort differently; each defines `effort` and says in `effort_param` what it is called.
    """

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
        for name in SWITCHES:
            if getattr(self, name) is not None and name in variables:
                raise ValueError(f"'{name}' is given twice: at top level and in 'chat_template_kwargs'")
        if type(variables.get("enable_thinking", True)) is not bool:
            raise ValueError("'chat_template_kwargs.enable_thinking' must be true or false")
        budget = variables.get("thinking_budget", 0)
        if type(budget) is not int or budget < 0:
            raise ValueError("'chat_template_kwargs.thinking_budget' must be a number of tokens")
        if self.effort is not None and self._given("thinking_budget") is not None:
            raise ValueError(f"'{self.effort_param}' and 'thinking_budget' both limit the thought; give one")
        if self.thinks is False and self.thought_params:
            off = f"'{self.effort_param}' none" if self.effort == "none" else "'enable_thinking' false"
            raise ValueError(f"'{self.thought_params[0]}' asks for a thought, but {off} switches thinking off")
        return self

    def _given(self, switch: Switch) -> Any:
        value = getattr(self, switch)
        return (self.chat_template_kwargs or {}).get(switch) if value is None else value

    @property
    def thought_params(self) -> list[str]:
        """The fields that ask for a thought."""
        asking = [
            name if getattr(self, name) is not None else f"chat_template_kwargs.{name}"
            for name in SWITCHES
            if self._given(name)
        ]
        return asking if self.effort in (None, "none") else [*asking, self.effort_param]

    @property
    def budget(self) -> int | None:
        """Tokens of the thought; None: as many as the model likes."""
        if self.thinks is False:
            return 0
        budget: int | None = self._given("thinking_budget") if self.effort is None else BUDGETS[self.effort]
        return budget

    @property
    def thinks(self) -> bool | None:
        """None: as the template has it."""
        switch: bool | None = self._given("enable_thinking")
        return False if self.effort == "none" else switch

    @property
    def template_variables(self) -> dict[str, Any]:
        """`chat_template_kwargs` without what is no business of the template's."""
        given = self.chat_template_kwargs or {}
        return {name: value for name, value in given.items() if name not in SWITCHES}
