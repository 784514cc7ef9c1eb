"""The runtime's whole error tree on one page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tandem_contract.flags import FlagError


class TandemError(Exception):
    """Base of every error Tandem raises on purpose."""


class StartupError(TandemError):
    """The process cannot serve as asked; the message is one line: what, where, remedy."""


@contextmanager
def flag_errors() -> Iterator[None]:
    """What the contract says of flags, as a `StartupError`."""
    try:
        yield
    except FlagError as error:
        raise StartupError(str(error)) from error


class UnsupportedModelError(StartupError):
    """The folder is no model this runtime can execute."""


class RequestError(TandemError):
    """A request is refused. `param` names the offending field in the API's terms."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PromptTooLongError(RequestError):
    code = "context_length_exceeded"


class GrammarError(RequestError):
    """The structure that was asked for cannot be enforced."""

    code = "invalid_grammar"


class UnknownModelError(RequestError):
    status = 404
    code = "model_not_found"


class OverloadedError(RequestError):
    """The queue is full or the request cannot fit soon; try another pod or later."""

    status = 503
    type = "overloaded_error"
    code = "engine_overloaded"


class DeadlineExceededError(RequestError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class EngineDeadError(RequestError):
    """The engine process is gone; the pod is about to restart."""

    status = 503
    type = "server_error"
    code = "engine_dead"


class HandoffError(TandemError):
    """A handoff attempt failed; the decode side falls back. `reason` is a metric label."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
