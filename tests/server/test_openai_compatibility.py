"""The compatibility page says what the server does, field by field."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from support import compatibility
from support.compatibility import SECTIONS, Section, own_fields, rows
from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.server.protocol.completions import CompletionRequest
from tandem_runtime.server.protocol.responses import ResponsesRequest

PAGE = Path(__file__).parents[2] / "docs" / "openai-compatibility.md"
LEAST: dict[Any, dict[str, Any]] = {
    ChatRequest: {"model": "m", "messages": [{"role": "user", "content": "Hi"}]},
    CompletionRequest: {"model": "m", "prompt": "Hi"},
    ResponsesRequest: {"model": "m", "input": "Hi"},
}
REQUESTS = [section for section in SECTIONS if section.model in LEAST]


def test_the_page_is_current() -> None:
    major = version("openai").partition(".")[0]
    assert PAGE.read_text(encoding="utf-8") == compatibility.page(f"{major}.x"), compatibility.__doc__


@pytest.mark.parametrize("section", REQUESTS, ids=lambda section: section.title)
def test_every_field_of_a_request_is_decided_on(section: Section) -> None:
    """A new version of the client may bring fields that nobody here has thought of."""
    undecided = compatibility.openai_fields(section.params) - section.model.model_fields.keys()
    assert not undecided


@pytest.mark.parametrize("section", REQUESTS, ids=lambda section: section.title)
def test_refused_fields_are_refused_by_name_and_accepted_when_null(section: Section) -> None:
    refused = [row for row in rows(section) if row.status == "refused"]
    assert refused
    for row in refused:
        assert row.note, f"{row.name}: say what to do instead"
        parse(section.model, LEAST[section.model] | {row.name: None})
        with pytest.raises(RequestError) as refusal:
            parse(section.model, LEAST[section.model] | {row.name: "something else"})
        assert refusal.value.param == row.name


@pytest.mark.parametrize("section", REQUESTS, ids=lambda section: section.title)
def test_ignored_fields_say_why(section: Section) -> None:
    ignored = [row for row in rows(section) if row.status == "ignored"]
    assert ignored
    assert all(row.note for row in ignored)


def test_a_field_that_may_only_be_null_is_not_called_honoured() -> None:
    for section in SECTIONS:
        honoured = {row.name for row in rows(section) if row.status == "honoured"}
        nothing = {name for name, field in section.model.model_fields.items() if field.annotation is type(None)}
        assert not honoured & nothing, section.title


def test_own_fields_are_listed() -> None:
    assert {"top_k", "cache_salt", "ignore_eos"} <= {row.name for row in own_fields(REQUESTS[0])}
