"""An engine pod's API on real sockets, with a scripted engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from aiohttp import web
from support.scripted_engine import ScriptedEngine
from tandem_runtime.server.app import build_app, build_metrics_app
from tandem_runtime.server.listen import bind, listen
from tandem_runtime.server.pod import Pod
from tandem_runtime.text.tokenizer import Tokenizer


@dataclass
class Server:
    """A pod with a scripted engine behind real sockets."""

    pod: Pod
    engine: ScriptedEngine
    tokenizer: Tokenizer
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    url: str = ""
    metrics_url: str = ""

    def say(self, text: str, *, eos: bool = True) -> None:
        """Makes `text` the engine's answer to every request."""
        self.say_tokens([*self.tokenizer.encode(text, add_special_tokens=False), *([2] if eos else [])])

    def say_tokens(self, token_ids: Sequence[int]) -> None:
        self.engine.reply = lambda request: token_ids

    async def start(self) -> None:
        self.url = await self._listen(build_app(self.pod))
        self.metrics_url = await self._listen(build_metrics_app(self.pod))

    async def stop(self) -> None:
        await self.stack.aclose()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def _listen(self, app: web.Application) -> str:
        bound = bind("127.0.0.1", 0, flag="--port")
        await listen(app, bound, self.stack)
        return f"http://127.0.0.1:{bound.getsockname()[1]}"
