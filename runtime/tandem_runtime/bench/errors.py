"""What can go wrong in a benchmark, apart from single requests (those are counted, not raised)."""

from __future__ import annotations

from tandem_runtime.core.errors import TandemError


class BenchError(TandemError):
    """The measurement cannot be made; the message says why and what to do, in one line."""


class ServerUnusable(BenchError):
    """The server is unreachable or lacks an endpoint that the measurement needs."""


class PromptNotBuildable(BenchError):
    """No text of exactly the asked token length was found."""
