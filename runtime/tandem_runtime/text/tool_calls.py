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
from typing import Any, Literal

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_HEADER = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){1,256}")\s*,\s*"arguments"\s*:\s*(?=\{)')
_HEADER_CHARS = 512
"""Within which a header that can be streamed ends; other calls are read when they are complete."""
_BODY_CHARS = 16 * 1024
"""Within which the closing tag of a call that cannot be streamed begins; what is longer is content."""
_TAG = re.compile(f"{OPEN}|{CLOSE}")
_OUTSIDE_STRINGS = frozenset(' \t\r\n{}[]:,"0123456789+-.eEtrufalsn')
"""All that JSON has outside of its strings."""


@dataclass(frozen=True, slots=True)
class CallDelta:
    index: int
    name: str | None
    """Of a call that begins."""
    arguments: str
    """JSON text, to be appended."""


Piece = str | CallDelta
"""Content, or a part of a call."""


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


@dataclass(slots=True)
class _Body:
    """Where the closing tag begins, of a text that grows; one inside a JSON string does not count."""

    scanned: int = 0
    in_string: bool = False
    escaped: bool = False

    def end(self, held: str) -> int | None:
        """`held`: the text that was seen before, and more. None: not yet, or not within `_BODY_CHARS`."""
        for index in range(self.scanned, min(len(held), _BODY_CHARS)):
            char = held[index]
            if self.in_string:
                self.in_string = self.escaped or char != '"'
                self.escaped = char == "\\" and not self.escaped
            elif char == '"':
                self.in_string = True
            elif char == "<" and held.startswith(CLOSE, index):
                return index
            elif char == "<" and CLOSE.startswith(held[index:]):
                self.scanned = index
                return None
        self.scanned = min(len(held), _BODY_CHARS)
        return None


class ToolCallParser:
    """Text in, content and calls out, in their order. Put together they do not depend on where the text is cut.

    A call whose header comes in the usual order is announced when its name is known, and its arguments follow as they
    come; others are read when they are complete. What names no known function, or is not closed within 16 Ki
    characters, is content, tags included. White space around calls is dropped, and so is what stands between the end of
    a call's arguments and its closing tag, and everything after as many calls as are wanted.
    """

    def __init__(self, names: Collection[str], *, at_most: int | None = None, only_calls: bool = False) -> None:
        """`names`: of the functions there are; `at_most` so many calls are wanted; `only_calls`: the answer is made to
        have no content, so that a call which is cut off before its name is known is not content either."""
        self._names = names
        self._at_most = at_most
        self._only_calls = only_calls
        self._held = ""
        """Text that may belong to a tag, to a header, or to the white space around a call."""
        self._state: Literal["content", "header", "arguments", "tail"] = "content"
        self._json = _Json()
        self._body = _Body()
        self.calls = 0
        self.done = False
        """Whether as many calls as are wanted have ended."""

    def push(self, text: str) -> list[Piece]:
        self._held += text
        found: list[Piece] = []
        while not self.done:
            state, held = self._state, self._held
            found += getattr(self, f"_in_{state}")()
            if (state, held) == (self._state, self._held):
                break
        return found

    def flush(self) -> list[Piece]:
        """At the end of the answer."""
        held, self._held = self._held, ""
        if self.done or self._only_calls or self._state in ("arguments", "tail"):
            return []
        if self._state == "header":
            return self._whole(held)
        return _content(held.rstrip() if self.calls else held)

    def _in_content(self) -> list[Piece]:
        held = self._held
        start = held.find(OPEN)
        if start >= 0:
            self._held, self._state, self._body = held[start + len(OPEN) :], "header", _Body()
            return _content(held[:start].rstrip())
        keep = _beginning_of(OPEN, held)
        body = held[: len(held) - keep]
        shown = body.rstrip()
        if not shown:
            return []
        self._held = held[len(shown) :]
        return [shown]

    def _in_header(self) -> list[Piece]:
        match = self._body.scanned <= _HEADER_CHARS and _HEADER.match(self._held[: _HEADER_CHARS + 1])
        if match and (name := _string(match[1])) in self._names:
            self._held, self._state, self._json = self._held[match.end() :], "arguments", _Json()
            self.calls += 1
            return [CallDelta(self.calls - 1, name, "")]
        end = self._body.end(self._held)
        if end is not None:
            body, self._held = self._held[:end], self._held[end + len(CLOSE) :]
            self._state = "content"
            return self._whole(body, CLOSE)
        if self._body.scanned < _BODY_CHARS:
            return []
        body, self._held = self._held[:_BODY_CHARS], self._held[_BODY_CHARS:]
        self._state = "content"
        return [OPEN + body]

    def _in_arguments(self) -> list[Piece]:
        for index, char in enumerate(self._held):
            verdict = self._json.feed(char)
            if verdict != "goes on":
                end = index + (verdict == "ended")
                arguments, self._held = self._held[:end], self._held[end:]
                self._state = "tail"
                self.done = self.calls == self._at_most
                return self._append(arguments)
        arguments, self._held = self._held, ""
        return self._append(arguments)

    def _in_tail(self) -> list[Piece]:
        """After the arguments: what is left of the call, which is dropped, up to its closing tag or the next call."""
        held = self._held
        if tag := _TAG.search(held):
            self._held, self._state = held[tag.end() if tag[0] == CLOSE else tag.start() :], "content"
        else:
            keep = max(_beginning_of(OPEN, held), _beginning_of(CLOSE, held))
            self._held = held[len(held) - keep :]
        return []

    def _append(self, arguments: str) -> list[Piece]:
        return [CallDelta(self.calls - 1, None, arguments)] if arguments else []

    def _whole(self, body: str, close: str = "") -> list[Piece]:
        """A complete body that was not streamed."""
        try:
            call = json.loads(body)
            name = call.get("name") if isinstance(call, dict) else None
            if not isinstance(name, str) or name not in self._names:
                return [OPEN + body + close]
            arguments = call.get("arguments", {})
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        except (ValueError, RecursionError):
            return [OPEN + body + close]
        self.calls += 1
        self.done = self.calls == self._at_most
        return [CallDelta(self.calls - 1, name, ""), CallDelta(self.calls - 1, None, text)]


def _content(text: str) -> list[Piece]:
    return [text] if text else []


def _string(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _beginning_of(tag: str, text: str) -> int:
    """Length of the end of `text` that may be the beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
