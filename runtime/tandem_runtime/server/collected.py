"""The choices of an answer that is given whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tandem_runtime.server.choice import Choice, Delta, Scored
from tandem_runtime.text.tool_calls import CallDelta


@dataclass(slots=True)
class Collected:
    """All of a choice."""

    choice: Choice
    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[CallDelta] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)


class Collection:
    def __init__(self) -> None:
        self._choices: dict[int, Collected] = {}

    def add(self, choice: Choice, delta: Delta) -> None:
        one = self._choices.setdefault(choice.index, Collected(choice))
        one.reasoning.append(delta.reasoning)
        one.content.append(delta.content)
        one.calls += delta.calls
        one.scored += delta.scored

    def __iter__(self) -> Iterator[Collected]:
        """In the order of the choices."""
        return (one for _, one in sorted(self._choices.items()))
