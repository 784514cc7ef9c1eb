"""Masks are made on a thread; what goes wrong there is told to whoever waits for them."""

from __future__ import annotations

import pytest
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.grammar.compiler import GrammarCompiler
from tandem_runtime.grammar.library import GrammarLibrary
from tandem_runtime.grammar.table import ConstraintTable


def test_the_first_error_is_told_and_later_work_does_not_hide_it() -> None:
    """Symptom: a slot whose constraint could not be made failed with a bare KeyError, or another slot's work hid it."""

    def broken() -> GrammarCompiler:
        raise OSError("no tokenizer")

    library = GrammarLibrary(broken)
    table = ConstraintTable(library, max_num_seqs=2, vocab_size=32)
    table.start(0, SamplingParams(max_tokens=1, grammar="any"), [])
    table.start(1, SamplingParams(max_tokens=1), [])
    table.advance([0, 1], lambda: [3, 4])
    for slot in (0, 1):
        with pytest.raises(OSError, match="no tokenizer"):
            table.allowed(slot)
    table.close()
    library.close()
