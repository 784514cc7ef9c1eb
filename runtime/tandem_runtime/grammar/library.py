"""Compiled grammars by their text, compiled on a thread of their own: neither the engine's loop nor a step waits."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher

from tandem_runtime.core.errors import GrammarError
from tandem_runtime.grammar.compiler import GrammarCompiler

CAPACITY = 128


class GrammarLibrary:
    def __init__(self, make_compiler: Callable[[], GrammarCompiler]) -> None:
        """`make_compiler` is called at once, on the library's thread."""
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar-compiler")
        self._compiler = self._thread.submit(make_compiler)

    def wait(self) -> None:
        """Until the compiler is there, or cannot be: llguidance holds the GIL while it reads a vocabulary."""
        concurrent.futures.wait([self._compiler])

    def __contains__(self, grammar: str) -> bool:
        with self._lock:
            return grammar in self._matchers

    def prepare(self, grammar: str, on_ready: Callable[[GrammarError | None], None]) -> Future[None]:
        """Calls `on_ready` on the library's thread, in order, once `grammar` is compiled or refused.

        Neither is done when the future is cancelled in time.
        """
        return self._thread.submit(self._prepare, grammar, on_ready)

    def matcher(self, grammar: str) -> LLMatcher:
        """A new one, at its beginning. Compiles only what was prepared so long ago that it has been dropped."""
        with self._lock:
            found = self._matchers.get(grammar)
            if found is not None:
                self._matchers.move_to_end(grammar)
                return found.deep_copy()
        return self._compile(grammar).deep_copy()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, grammar: str, on_ready: Callable[[GrammarError | None], None]) -> None:
        try:
            if grammar not in self:
                self._compile(grammar)
        except GrammarError as error:
            on_ready(error)
        except BaseException as error:  # of the tokenizer, or a panic inside llguidance, which is no `Exception`
            on_ready(GrammarError(f"the structure cannot be enforced: {error}"))
        else:
            on_ready(None)

    def _compile(self, grammar: str) -> LLMatcher:
        compiled = self._compiler.result().compile(grammar)
        with self._lock:
            self._matchers[grammar] = compiled
            while len(self._matchers) > CAPACITY:
                self._matchers.popitem(last=False)
        return compiled
