"""Function calls in streamed text: never half a tag, never a lost character, however the text is cut."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.text.tool_calls import ToolCallParser

NAMES = {"weather", "now"}


def parse(pieces: list[str], *, at_most: int | None = None) -> tuple[str, list[tuple[str, str]]]:
    parser = ToolCallParser(NAMES, at_most=at_most)
    content, calls = "", []
    for found in [*map(parser.push, pieces), parser.flush()]:
        for delta in found:
            if isinstance(delta, str):
                content += delta
                continue
            if delta.name is not None:
                assert delta.index == len(calls)
                calls.append((delta.name, ""))
            name, arguments = calls[delta.index]
            calls[delta.index] = (name, arguments + delta.arguments)
    return content, calls


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


PARIS = call("weather", '{"city": "Paris"}')
CASES = [
    ("Hello.", "Hello.", []),
    ("  Hello \n", "  Hello \n", []),
    (PARIS, "", [("weather", '{"city": "Paris"}')]),
    (f"Let me see.\n\n{PARIS}", "Let me see.", [("weather", '{"city": "Paris"}')]),
    (PARIS + "\n" + call("now", "{}"), "", [("weather", '{"city": "Paris"}'), ("now", "{}")]),
    (PARIS + "\nDone.", "\nDone.", [("weather", '{"city": "Paris"}')]),
    (call("weather", '{"q": "a } </tool_call> \\" ] <tool_call>"}'), "",
     [("weather", '{"q": "a } </tool_call> \\" ] <tool_call>"}')]),
    ('<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', "", [("now", '{"a": 1}')]),
    ('<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    ('<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("now", '{"a": 1}')]),
    (call("nothing", "{}"), call("nothing", "{}"), []),
    ("<tool_call>\nnot JSON\n</tool_call> after", "<tool_call>\nnot JSON\n</tool_call> after", []),
    ("<tool_call>[1, 2]</tool_call>", "<tool_call>[1, 2]</tool_call>", []),
    ("a <tool_call", "a <tool_call", []),
    ("a < b <tool_c d", "a < b <tool_c d", []),
    ('<tool_call>{"name": "wea', '<tool_call>{"name": "wea', []),
    ('<tool_call>{"name": "now", "arguments": {"a": ', "", [("now", '{"a": ')]),
    ('<tool_call>{"name": "now", "arguments": {"a": </tool_call>x', "x", [("now", '{"a": ')]),
    ('<tool_call>{"name": "now", "arguments": {"a": 1}, "id": 7}</tool_call>', "", [("now", '{"a": 1}')]),
    ('<tool_call>{"name": "now", "arguments": {}}\n' + PARIS, "", [("now", "{}"), ("weather", '{"city": "Paris"}')]),
    ('<tool_call>{"name": "now", "arguments": {}}\n', "", [("now", "{}")]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "content", "calls"), CASES)
def test_whole_and_character_by_character(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parse([text]) == (content, calls)
    assert parse(list(text)) == (content, calls)


@pytest.mark.parametrize("text", [text for text, _, _ in CASES])
def test_every_cut_into_two(text: str) -> None:
    for cut in range(len(text)):
        assert parse([text[:cut], text[cut:]]) == parse([text])


PIECES = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "now", "arguments": ',
    '{"a": "',
    '"}',
    "{",
    "}",
    '"',
    "\\",
    "\n",
    "<",
    "x",
    "}\n",
]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=25), data=st.data())
def test_the_cut_does_not_matter(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    borders = [0, *cuts, len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(borders)]
    assert parse(parts) == parse([text]) == parse(list(text))


def test_no_half_tag_is_shown() -> None:
    parser = ToolCallParser(NAMES)
    shown = [piece for char in f"Hi. {PARIS}" for piece in parser.push(char) if isinstance(piece, str)]
    assert "".join(shown) == "Hi."


@pytest.mark.parametrize("cut", ["<tool_", '<tool_call>\n{"name": "get_'])
def test_a_call_that_is_cut_off_where_only_calls_may_come_is_not_content(cut: str) -> None:
    for only_calls, shown in ((True, []), (False, [cut])):
        parser = ToolCallParser({"get_weather"}, only_calls=only_calls)
        assert parser.push(cut) + parser.flush() == shown


def test_pieces_come_in_the_order_of_the_text() -> None:
    found = ToolCallParser(NAMES).push(f"One.\n{PARIS}\nTwo.\n{call('now', '{}')}\nThree.")
    kinds = [piece if isinstance(piece, str) else piece.name or "arguments" for piece in found]
    assert kinds == ["One.", "weather", "arguments", "\nTwo.", "now", "arguments", "\nThree."]


def test_arguments_come_as_they_are_written() -> None:
    parser = ToolCallParser(NAMES)
    deltas = [delta for char in PARIS for delta in parser.push(char)]
    assert deltas[0].name == "weather"
    assert len(deltas) > 10
    assert json.loads("".join(delta.arguments for delta in deltas)) == {"city": "Paris"}


def test_no_more_calls_than_are_wanted() -> None:
    text = PARIS + "\n" + call("now", "{}") + "tail"
    assert parse([text], at_most=1) == parse(list(text), at_most=1) == ("", [("weather", '{"city": "Paris"}')])


def test_no_more_calls_than_are_wanted_where_tags_stay_open() -> None:
    """Symptom: two calls where one was wanted, and `}` as content. Cause: only closing tags counted."""
    text = '<tool_call>{"name": "now", "arguments": {}}\n' + PARIS
    assert parse([text], at_most=1) == parse(list(text), at_most=1) == ("", [("now", "{}")])


@pytest.mark.parametrize("body", ['{"name": ["now"]}', '{"name": {"a": 1}}', '{"name": null}', "[" * 3000])
def test_a_body_of_any_shape_is_content(body: str) -> None:
    """Symptom: TypeError (a list is not hashable) or RecursionError ended the answer; only ValueError was caught."""
    text = f"<tool_call>{body}</tool_call>"
    assert parse([text]) == parse(list(text)) == (text, [])


def test_a_tag_that_is_never_closed_costs_little() -> None:
    """Symptom: 8,000 tokens after a lone tag kept the event loop busy for 11 s. Cause: each token scanned all again."""
    text = "<tool_call>" + "word " * 8000
    parser = ToolCallParser(NAMES)
    began = time.process_time()
    content = "".join(found for piece in itertools.repeat("word ", 8000) for found in parser.push(piece))
    assert content == text[len("<tool_call>") :].rstrip()
    plain = time.process_time() - began
    parser = ToolCallParser(NAMES)
    began = time.process_time()
    shown = ["".join(map(str, parser.push(piece))) for piece in ["<tool_call>", *itertools.repeat("word ", 8000)]]
    assert time.process_time() - began < 10 * plain + 0.1
    assert any(shown[:-1]), "held for ever"
    assert "".join(shown) == text.rstrip()


@pytest.mark.parametrize("blanks", [16_300, 16_384, 16_385, 20_000])
def test_a_body_that_is_too_long_is_content_however_it_is_cut(blanks: int) -> None:
    text = f'<tool_call>{" " * blanks}{{"name": "now"}}</tool_call> after'
    whole = parse([text])
    assert whole == parse(list(text))
    assert whole == ((" after", [("now", "{}")]) if blanks == 16_300 else (text, []))
