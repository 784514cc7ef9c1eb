"""What an engine that samples needs for constrained decoding, in one value."""

from __future__ import annotations

from collections.abc import Callable

from tandem_runtime.engine.grammar_gate import GrammarGate
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.grammar.compile_queue import CompileQueue
from tandem_runtime.grammar.compiler import GrammarCompiler
from tandem_runtime.grammar.library import GrammarLibrary
from tandem_runtime.grammar.table import ConstraintTable
from tandem_runtime.text.vocabulary import read_vocabulary


class Constraining:
    def __init__(self, config: ExecutionConfig, post: Callable[[Callable[[], None]], None]) -> None:
        """`post`: to the engine's inbox. The tokenizer is read on a thread of its own, while the weights load."""
        library = GrammarLibrary()
        self._compilations = CompileQueue(lambda: _compiler(config))
        self.gate = GrammarGate(library, self._compilations, post)
        self.table = ConstraintTable(library, max_num_seqs=config.max_num_seqs, vocab_size=config.model.vocab_size)

    def wait(self) -> None:
        """Until nothing is left to be read; before the engine runs, which must not stand still for seconds."""
        self._compilations.wait()

    def close(self) -> None:
        self.table.close()
        self._compilations.close()


def _compiler(config: ExecutionConfig) -> GrammarCompiler:
    read = read_vocabulary(config.folder, config.model.vocab_size, stand_in=config.load_format == "dummy")
    return GrammarCompiler(
        read.tokens,
        special_token_ids=read.special_token_ids,
        eos_token_ids=config.model.eos_token_ids,
        encode=read.encode,
    )
