"""Finds function calls in an answer as its text streams by, in the hermes format that Qwen's templates ask for:

<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){1,256}")\s*,\s*"arguments"\s*:\s*(?=\{)')
_HEADER_CHARS = 512
"""Within which a header that can be streamed ends; other calls are read when they are complete."""
_OUTSIDE_STRINGS = frozenset(' \t\r\n{}[]:,"0123456789+-.eEtrufalsn')
"""All that JSON has outside of its strings."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    index: int
    name: str | None
    """Of a call that begins."""
    arguments: str
    """JSON text, to be appended."""


class Found(NamedTuple):
    content: str
    calls: list[CallDelta]


@dataclass(slots=True)
class _Json:
    """Whether a JSON object has ended, character by character."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False

    def feed(self, char: str) -> Literal["goes on", "ended", "broken"]:
        if self.in_string:
            if self.escaped:
                self.escaped = False
            elif char == "\\":
                self.escaped = True
            elif char == '"':
                self.in_string = False
            return "goes on"
        if char not in _OUTSIDE_STRINGS:
            return "broken"
        self.in_string = char == '"'
        self.depth += (char in "{[") - (char in "}]")
        return "ended" if self.depth == 0 else "goes on"


class ToolCallParser:
    """Text in, content and calls out; the text may be cut anywhere, and the same comes out.

    A call is announced when its name is known, and its arguments follow as they come. What is no call of a known
    function is content, tags included. White space around calls is dropped.
    """

    def __init__(self, names: Collection[str], *, at_most: int | None = None) -> None:
        """`names`: of the functions there are; `at_most` so many calls are wanted."""
        self._names = names
        self._at_most = at_most
        self._held = ""
        """Text that may belong to a tag, to a header, or to the white space around a call."""
        self._state: Literal["content", "header", "arguments", "tail"] = "content"
        self._json = _Json()
        self.calls = 0
        self.done = False
        """Whether as many calls as are wanted have ended."""

    def push(self, text: str) -> Found:
        self._held += text
        found = Found("", [])
        while not self.done:
            state, held = self._state, self._held
            content, calls = getattr(self, f"_in_{state}")()
            found = Found(found.content + content, found.calls + calls)
            if (state, held) == (self._state, self._held):
                break
        return found

    def flush(self) -> Found:
        """At the end of the answer."""
        held, self._held = self._held, ""
        if self.done or self._state in ("arguments", "tail"):
            return Found("", []) if self._state != "tail" else Found(held.strip() and held, [])
        if self._state == "header":
            return self._whole(held)
        return Found(held.rstrip() if self.calls else held, [])

    def _in_content(self) -> Found:
        held = self._held
        start = held.find(OPEN)
        if start >= 0:
            self._held, self._state = held[start + len(OPEN) :], "header"
            return Found(held[:start].rstrip(), [])
        keep = _beginning_of(OPEN, held)
        body = held[: len(held) - keep]
        shown = body.rstrip()
        if not shown:
            return Found("", [])
        self._held = held[len(shown) :]
        return Found(shown, [])

    def _in_header(self) -> Found:
        match = _HEADER.match(self._held[: _HEADER_CHARS + 1])
        if match and (name := _string(match[1])) in self._names:
            self._held, self._state, self._json = self._held[match.end() :], "arguments", _Json()
            self.calls += 1
            return Found("", [CallDelta(self.calls - 1, name, "")])
        end = _end_of_body(self._held)
        if end is None:
            return Found("", [])
        body, self._held = self._held[:end], self._held[end + len(CLOSE) :]
        self._state = "content"
        return self._whole(body, CLOSE)

    def _in_arguments(self) -> Found:
        for index, char in enumerate(self._held):
            verdict = self._json.feed(char)
            if verdict != "goes on":
                end = index + (verdict == "ended")
                arguments, self._held = self._held[:end], self._held[end:]
                self._state = "tail"
                return Found("", self._append(arguments))
        arguments, self._held = self._held, ""
        return Found("", self._append(arguments))

    def _in_tail(self) -> Found:
        """After the arguments: `}` and the closing tag, or what a confused model writes instead."""
        rest = self._held.lstrip()
        rest = rest[1:].lstrip() if rest.startswith("}") else rest
        if rest.startswith(CLOSE):
            self._held, self._state = rest[len(CLOSE) :], "content"
            self.done = self._at_most is not None and self.calls >= self._at_most
        elif not CLOSE.startswith(rest):
            self._state = "content"
        return Found("", [])

    def _append(self, arguments: str) -> list[CallDelta]:
        return [CallDelta(self.calls - 1, None, arguments)] if arguments else []

    def _whole(self, body: str, close: str = "") -> Found:
        """A complete body that was not streamed."""
        try:
            call = json.loads(body)
        except ValueError:
            call = None
        if not isinstance(call, dict) or call.get("name") not in self._names:
            return Found(OPEN + body + close, [])
        arguments = call.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        self.calls += 1
        self.done = self._at_most is not None and self.calls >= self._at_most
        return Found("", [CallDelta(self.calls - 1, call["name"], ""), CallDelta(self.calls - 1, None, text)])


def _string(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _end_of_body(held: str) -> int | None:
    """Where the closing tag begins; one inside a JSON string does not count, unless the body is no JSON at all."""
    in_string = escaped = False
    for index, char in enumerate(held):
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char == "<" and held.startswith(CLOSE, index):
            return index
    return None


def _beginning_of(tag: str, text: str) -> int:
    """Length of the end of `text` that may be the beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
