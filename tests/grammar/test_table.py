"""Masks are made on threads; what goes wrong there is told to whoever waits for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.slow_grammars import END, VOCAB_SIZE, ByteCompiler
from tandem_runtime.core.sampling import SamplingParams, Thinking
from tandem_runtime.grammar import sources
from tandem_runtime.grammar.library import GrammarLibrary
from tandem_runtime.grammar.table import ConstraintTable

SLOTS = 24


@pytest.fixture
def library() -> GrammarLibrary:
    return GrammarLibrary()


@pytest.fixture(params=[1, 3])
def table(library: GrammarLibrary, request: pytest.FixtureRequest) -> Iterator[ConstraintTable]:
    made = ConstraintTable(library, max_num_seqs=SLOTS, vocab_size=VOCAB_SIZE, threads=request.param)
    yield made
    made.close()


def allowed(table: ConstraintTable, slot: int) -> list[int] | None:
    mask = table.allowed(slot)
    return None if mask is None else [token for token in range(VOCAB_SIZE) if mask[token >> 3] >> (token & 7) & 1]


def test_every_slot_follows_its_own_grammar_whatever_the_others_do(
    table: ConstraintTable, library: GrammarLibrary
) -> None:
    thinking = Thinking(open_id=60, close_id=62, begun=True, budget=1)
    words = {slot: f"{slot:02}abc" for slot in range(SLOTS - 2)}
    held = [
        library.add(grammar, ByteCompiler().compile(grammar))
        for grammar in (sources.combine(sources.of_choices([word])) for word in words.values())
    ]
    for slot, compiled in enumerate(held):
        table.start(slot, SamplingParams(max_tokens=9, grammar=compiled.text), [])
    failing, closing = SLOTS - 2, SLOTS - 1
    table.start(failing, SamplingParams(max_tokens=9, grammar=held[0].text), [ord("?")])
    table.start(closing, SamplingParams(max_tokens=9, thinking=thinking), [])
    for position in range(5):
        for slot, word in words.items():
            assert allowed(table, slot) == [ord(word[position])]
        assert (table.failure(failing) or "").startswith("the structure became too complex")
        assert allowed(table, failing) is None
        assert allowed(table, closing) == ([62] if position == 1 else None)
        sampled = [*(ord(word[position]) for word in words.values()), 1, 1 if position == 0 else 62]
        table.advance([*words, failing, closing], sampled.copy)
    assert allowed(table, 0) == [END]


def test_a_sequence_whose_request_has_ended_fails_alone(table: ConstraintTable, library: GrammarLibrary) -> None:
    """The step that starts it may have been planned before the request was aborted, and its grammar dropped."""
    table.start(0, SamplingParams(max_tokens=1, grammar="dropped"), [])
    table.start(1, SamplingParams(max_tokens=1), [])
    assert table.failure(0) == "the request has ended"
    assert table.allowed(0) is None
    assert table.failure(1) is None


def test_the_first_error_is_told_and_later_work_does_not_hide_it(table: ConstraintTable) -> None:
    """Symptom: a slot whose step had failed was answered with a bare KeyError, or another slot's work hid it."""

    def broken() -> list[int]:
        raise OSError("the device is lost")

    table.start(0, SamplingParams(max_tokens=1), [])
    table.advance([0], broken)
    table.start(1, SamplingParams(max_tokens=1), [])
    for slot in (0, 1):
        with pytest.raises(OSError, match="the device is lost"):
            table.allowed(slot)
