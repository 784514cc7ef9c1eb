"""Chat templates: the Jinja dialect that Hugging Face defines for `chat_template`, rendered in a sandbox."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tandem_contract.flag_files import flag_file

from tandem_runtime.core.errors import RequestError, StartupError, flag_errors
from tandem_runtime.text import tool_calls
from tandem_runtime.text.reasoning import OPEN

THINKING_SWITCH = "enable_thinking"
_OWN_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now"}


class ChatTemplate:
    def __init__(self, source: str, special_tokens: Mapping[str, str], *, name: str = "chat template") -> None:
        """`special_tokens` such as {"bos_token": "<s>"}; `name` is for errors. Raises `StartupError` if `source` is no
        template."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise}
        try:
            variables = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise StartupError(f"{name}, line {error.lineno}: {error.message}") from error
        self._special_tokens = dict(special_tokens)
        self.source = source
        self.variables = variables - _OWN_VARIABLES - set(special_tokens) - set(environment.globals)
        """What `chat_template_kwargs` may set; the template reads nothing else."""
        self.knows_tools = tool_calls.OPEN in source and "<function=" not in source
        """Whether it describes tools and asks for calls in the hermes format."""
        self.knows_reasoning = OPEN in source
        """Whether the model's answers may begin with a `<think>` block."""
        self.switches_thinking = THINKING_SWITCH in self.variables

    @classmethod
    def read(cls, path: Path, special_tokens: Mapping[str, str]) -> ChatTemplate:
        """The model's own. Raises `StartupError`."""
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"chat template {path}: {error}") from error
        return cls(source, special_tokens, name=f"chat template {path}")

    @classmethod
    def read_override(cls, path: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
        """That of `--chat-template`. Raises `StartupError`."""
        wants = "name a Jinja file, or leave the flag out for the model's own"
        with flag_errors(), flag_file("chat_template", path, wants=wants):
            source = Path(path).read_text(encoding="utf-8")
            if not source.strip():
                raise ValueError("it is empty")
        return cls(source, special_tokens, name=f"--chat-template {path}")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        messages_param: str = "messages",
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        now: float | None = None,
    ) -> str:
        """The prompt, up to and including the opening of the assistant's turn.

        `now` in Unix seconds: for templates that tell the date.

        Raises `RequestError` for variables the template does not read, and for messages it refuses (which came in the
        request's field `messages_param`).
        """
        variables = variables or {}
        moment = datetime.fromtimestamp(time.time() if now is None else now)
        for name in variables:
            if name not in self.variables:
                known = ", ".join(sorted(self.variables)) or "none"
                raise RequestError(
                    f"the model's chat template has no variable '{name}' (it has: {known})",
                    param=f"chat_template_kwargs.{name}",
                )
        try:
            return self._template.render(
                **self._special_tokens,
                **variables,
                messages=messages,
                tools=tools,
                add_generation_prompt=True,
                strftime_now=moment.strftime,
            )
        # A template is a program over the client's data: whatever it raises, these messages do not fit it.
        except Exception as error:
            raise RequestError(f"the chat template refuses these messages: {error}", param=messages_param) from error


def check_template(path: str) -> None:
    """At once, where reading the tokenizer takes a while. Raises `StartupError`."""
    ChatTemplate.read_override(path, {})


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Unlike Jinja's own filter this one does not escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
