"""Ordinary grammars do not wait for costly ones, and neither kind waits for ever."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest
from llguidance import LLMatcher
from support.slow_grammars import ByteCompiler
from tandem_runtime.core.errors import GrammarError, OverloadedError
from tandem_runtime.grammar import sources
from tandem_runtime.grammar.compile_queue import MOST_COSTLY, Compilation, CompileQueue, Outcome
from tandem_runtime.grammar.compiler import Limits

PATIENCE_S = 20


def cheap(index: int) -> str:
    return sources.combine(sources.of_choices([f"answer {index}"]))


def costly(index: int) -> str:
    properties = {f"property-{index}-{i}": {"type": "string"} for i in range(800)}
    return sources.combine(sources.of_json_schema({"type": "object", "properties": properties}, strict=True))


class HeldUp(ByteCompiler):
    """A compiler whose long tries wait for `go`, and its short ones for `go_short`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go_short = threading.Event()
        self.go_short.set()
        self.begun_short: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Long tries."""

    def compile(self, grammar: str, limits: Limits = Limits.LONG) -> LLMatcher:
        if limits is Limits.LONG:
            self.begun.put(grammar)
            assert self.go.wait(PATIENCE_S)
        else:
            self.begun_short.put(grammar)
            assert self.go_short.wait(PATIENCE_S)
        return super().compile(grammar, limits)


class Asked:
    def __init__(self) -> None:
        self.compiler = HeldUp()
        self.compilations = CompileQueue(lambda: self.compiler, threads=1)
        self.done: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()

    def begin(self, grammar: str) -> Compilation:
        return self.compilations.begin(grammar, lambda outcome: self.done.put((grammar, outcome)))

    def next_done(self) -> tuple[str, Outcome]:
        return self.done.get(timeout=PATIENCE_S)


@pytest.fixture
def asked() -> Iterator[Asked]:
    made = Asked()
    yield made
    made.compiler.go_short.set()
    made.compiler.go.set()
    made.compilations.close()


def test_ordinary_grammars_pass_costly_ones(asked: Asked) -> None:
    """Symptom: one client's schemas of half a second each kept everybody else's waiting, one behind the other."""
    for index in range(3):
        asked.begin(costly(index))
    for index in range(20):
        asked.begin(cheap(index))
    for index in range(20):
        grammar, outcome = asked.next_done()
        assert (grammar, type(outcome)) == (cheap(index), LLMatcher)
    asked.compiler.go.set()
    assert [asked.next_done()[0] for _ in range(3)] == [costly(index) for index in range(3)]


def test_costly_ones_are_bounded(asked: Asked) -> None:
    asked.begin(costly(0))
    assert asked.compiler.begun.get(timeout=PATIENCE_S) == costly(0)
    for index in range(1, MOST_COSTLY + 2):
        asked.begin(costly(index))
    grammar, outcome = asked.next_done()
    assert grammar == costly(MOST_COSTLY + 1)
    assert isinstance(outcome, OverloadedError)


def test_a_costly_one_that_nobody_waits_for_any_more_makes_room(asked: Asked) -> None:
    asked.begin(costly(0))
    assert asked.compiler.begun.get(timeout=PATIENCE_S) == costly(0)
    jobs = [asked.begin(costly(index)) for index in range(1, MOST_COSTLY + 1)]
    asked.begin(cheap(0))
    assert asked.next_done()[0] == cheap(0)  # so all the others have had their short try
    for job in jobs[:-1]:
        asked.compilations.cancel(job)
    asked.begin(costly(99))
    asked.compiler.go.set()
    assert [asked.next_done()[0] for _ in range(3)] == [costly(0), costly(MOST_COSTLY), costly(99)]


def test_a_costly_grammar_whose_client_left_amid_its_short_try_gets_no_long_one(asked: Asked) -> None:
    asked.compiler.go_short.clear()
    job = asked.begin(costly(0))
    asked.compiler.begun_short.get(timeout=PATIENCE_S)
    asked.compilations.cancel(job)
    asked.compiler.go_short.set()
    asked.begin(costly(1))
    assert asked.compiler.begun.get(timeout=PATIENCE_S) == costly(1)


def test_what_is_wrong_is_told_after_the_long_try(asked: Asked) -> None:
    asked.compiler.go.set()
    asked.begin(sources.combine(sources.of_regex("(")))
    _, outcome = asked.next_done()
    assert isinstance(outcome, GrammarError)
    assert "unclosed group" in str(outcome)
