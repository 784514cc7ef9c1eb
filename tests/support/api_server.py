"""An engine pod's API on real sockets, with a scripted engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import web
from support.scripted_engine import ScriptedEngine
from tandem_runtime.server.app import build_app, build_metrics_app
from tandem_runtime.server.pod import Pod
from tandem_runtime.text.tokenizer import Tokenizer


@dataclass
class Server:
    """A pod with a scripted engine behind real sockets."""

    pod: Pod
    engine: ScriptedEngine
    tokenizer: Tokenizer
    runners: list[web.AppRunner] = field(default_factory=list)
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
        for runner in self.runners:
            await runner.cleanup()

    async def _listen(self, app: web.Application) -> str:
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        self.runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"
