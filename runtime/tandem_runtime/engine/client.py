"""The engine as the server sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
from tandem_contract.handoff import LayoutFingerprint

from tandem_runtime.engine.messages import EngineOutput, EngineRequest, EngineStatus


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What is fixed once the model is loaded."""

    fingerprint: LayoutFingerprint
    arithmetic: str
    """How the model is computed (`execution.fingerprint.arithmetic`)."""
    max_model_len: int
    page_size: int
    num_pages: int
    max_waiting: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    load_seconds: float
    incarnation: str


class EngineClient(Protocol):
    """Implemented by the process-backed client, and by fakes in the server's tests."""

    @property
    def info(self) -> EngineInfo:
        """Valid once `wait_ready` returned."""
        ...

    @property
    def status(self) -> EngineStatus:
        """The newest status received."""
        ...

    @property
    def alive(self) -> bool: ...

    async def wait_ready(self) -> None:
        """Returns when the model is loaded; raises `StartupError` when the engine gave up."""
        ...

    def generate(
        self, requests: Sequence[EngineRequest]
    ) -> AbstractAsyncContextManager[Sequence[AsyncGenerator[EngineOutput, None]]]:
        """The choices of one prompt, the leading one first; each is answered by its generator, which ends with the
        output that has a `finish_reason`.

        Closing a generator early (stop string found) aborts its request in the engine, the end of the block (client
        gone) all that are left. A generator raises `OverloadedError`, `PromptTooLongError` or `GrammarError` before its
        first output, `EngineDeadError` at any time.
        """
        ...

    async def control(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Hands a peer's handoff message to the engine; returns the HTTP status and body to answer."""
        ...

    async def close(self) -> None: ...
