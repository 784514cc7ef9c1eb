from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tandem_runtime.core.errors import RequestError, StartupError
from tandem_runtime.text.template import ChatTemplate, check_template
from tandem_runtime.text.tokenizer import Tokenizer
from transformers import AutoTokenizer

TOOL_TALK: list[dict[str, Any]] = [
    {"role": "system", "content": 'Be <brief> & "kind".'},
    {"role": "user", "content": "Weather in 北京?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I need the tool.",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "北京"}}}],
    },
    {"role": "tool", "content": "sunny", "tool_call_id": "1"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}])
def test_qwen3_prompts_as_transformers_renders_them(
    qwen3_folder: Path, qwen3: Tokenizer, tools: list[dict[str, object]] | None, variables: dict[str, bool]
) -> None:
    reference = AutoTokenizer.from_pretrained(qwen3_folder)
    assert qwen3.template is not None
    assert qwen3.template.render(TOOL_TALK, tools=tools, variables=variables) == reference.apply_chat_template(
        TOOL_TALK, tools=tools, tokenize=False, add_generation_prompt=True, **variables
    )


@pytest.mark.model
def test_smollm2_prompts_as_transformers_renders_them(smollm2_folder: Path) -> None:
    """Its template adds a system message where there is none."""
    messages = [{"role": "user", "content": "Hi"}]
    template = Tokenizer(str(smollm2_folder)).template
    assert template is not None
    reference = AutoTokenizer.from_pretrained(smollm2_folder)
    assert template.render(messages) == reference.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_unknown_variables_are_refused_by_name() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ tone }}", {})
    with pytest.raises(RequestError, match=r"no variable 'mood'.*it has: tone") as refusal:
        template.render([{"content": "a"}], variables={"mood": "good"})
    assert refusal.value.param == "chat_template_kwargs.mood"


def test_the_date_is_that_of_the_moment_given() -> None:
    template = ChatTemplate("{% macro today() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ today() }}", {})
    assert template.render([], now=86400.0 * 365) == "01 Jan 1971"
    assert template.render([]) == datetime.now().strftime("%d %b %Y")


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "raise_exception", "strftime_now"]
)
def test_what_the_server_sets_cannot_be_overridden(name: str) -> None:
    template = ChatTemplate("{{ messages }}{{ tools }}{{ add_generation_prompt }}{{ bos_token }}", {"bos_token": "<s>"})
    with pytest.raises(RequestError):
        template.render([], variables={name: "x"})


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[3].content.strip() }}", "no element 3|has no attribute"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_errors_of_a_template_are_the_requests_fault(source: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refusal:
        ChatTemplate(source, {}).render([{"role": "user", "content": "a"}])
    assert refusal.value.param == "messages"


def test_a_broken_template_stops_the_start() -> None:
    with pytest.raises(StartupError, match="chat template, line 2"):
        ChatTemplate("a\n{% for %}", {})


def test_override_file(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    template = Tokenizer(str(tiny_folder), chat_template=str(file)).template
    assert template is not None
    assert template.render([{"role": "user", "content": "a"}]) == "a<|im_end|>"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file; "),
        (b" \n", "it is empty; "),
        (b"\xff", "it is not UTF-8 text; "),
        (b"a\n{% for %}", "Expected an expression"),
        (b"{{ x | no_such_filter }}", "No filter named 'no_such_filter'"),
    ],
)
def test_an_override_that_is_none_is_one_line_that_names_the_flag(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "own.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartupError, match=f"^--chat-template {file}.*{reason}") as error:
        check_template(str(file))
    assert "\n" not in str(error.value)
