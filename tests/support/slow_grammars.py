"""Constrained decoding without a model: a vocabulary of bytes, and a compiler that is there when a test says so."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tandem_runtime.engine.grammar_gate import GrammarGate
from tandem_runtime.grammar.compile_queue import CompileQueue
from tandem_runtime.grammar.compiler import GrammarCompiler
from tandem_runtime.grammar.library import GrammarLibrary

END = 256
VOCAB_SIZE = 257


class ByteCompiler(GrammarCompiler):
    """Of a vocabulary of bytes, and `END`."""

    def __init__(self) -> None:
        tokens = [bytes([byte]) for byte in range(END)] + [b"<end>"]
        super().__init__(tokens, special_token_ids=[END], eos_token_ids=[END], encode=lambda text: list(text.encode()))


class SlowGrammars:
    def __init__(self, make_compiler: Callable[[], GrammarCompiler], recent: int) -> None:
        self.slow = threading.Event()
        """The compiler is not there before this is set."""
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Of the engine."""
        self.library = GrammarLibrary(recent=recent)
        self.compilations = CompileQueue(lambda: make_compiler() if self.slow.wait(20) else ByteCompiler())
        self.gate = GrammarGate(self.library, self.compilations, self.inbox.put)

    def next_event(self) -> Any:
        return self.inbox.get(timeout=20)


@contextmanager
def slow_grammars(
    make_compiler: Callable[[], GrammarCompiler] = ByteCompiler, *, recent: int = 2
) -> Iterator[SlowGrammars]:
    made = SlowGrammars(make_compiler, recent)
    try:
        yield made
    finally:
        made.slow.set()
        made.compilations.close()
