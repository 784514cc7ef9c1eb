"""Requests wait for their grammars outside the scheduler, in order, and without holding up others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest
from tandem_runtime.core.errors import GrammarError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine.grammar_gate import GrammarGate
from tandem_runtime.engine.messages import EngineRequest
from tandem_runtime.grammar import sources
from tandem_runtime.grammar.compiler import GrammarCompiler
from tandem_runtime.grammar.library import GrammarLibrary

GOOD = sources.combine(sources.of_choices(["a"]))
BAD = sources.combine(sources.of_regex("("))


class Harness:
    def __init__(self) -> None:
        self.slow = threading.Event()
        """The compiler is not there before this is set."""
        self.library = GrammarLibrary(self._compiler)
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.gate = GrammarGate(self.library, self.inbox.put)
        self.admitted: list[str] = []
        self.refused: dict[str, str] = {}

    def _compiler(self) -> GrammarCompiler:
        assert self.slow.wait(20)
        tokens = [bytes([byte]) for byte in range(256)] + [b"<end>"]
        return GrammarCompiler(tokens, special_token_ids=[256], eos_token_ids=[256], encode=lambda s: list(s.encode()))

    def enter(self, request_id: str, grammar: str = "", after: str = "") -> None:
        sampling = SamplingParams(max_tokens=5, grammar=grammar)
        request = EngineRequest(request_id=request_id, prompt_token_ids=[1], sampling=sampling, after=after)
        self.gate.enter(
            request,
            0.0,
            room=8,
            admit=lambda admitted, _: self.admitted.append(admitted.request_id),
            refuse=lambda refused, error: self.refused.update({refused.request_id: str(error)}),
        )

    def turn(self, events: int) -> None:
        for _ in range(events):
            self.inbox.get(timeout=20)()


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.slow.set()
    made.library.close()


def test_others_go_ahead_while_a_grammar_is_compiled(harness: Harness) -> None:
    harness.enter("constrained", GOOD)
    harness.enter("plain")
    assert harness.admitted == ["plain"]
    harness.slow.set()
    harness.turn(1)
    assert harness.admitted == ["plain", "constrained"]
    harness.enter("again", GOOD)
    assert harness.admitted[-1] == "again"


def test_followers_stay_behind_their_leader(harness: Harness) -> None:
    """Else each of n choices would compute the prompt by itself."""
    harness.enter("leader", GOOD)
    harness.enter("follower-1", GOOD, after="leader")
    harness.slow.set()
    # The grammar is in the library before the leader's event was taken.
    while GOOD not in harness.library:
        threading.Event().wait(0.001)
    harness.enter("follower-2", GOOD, after="leader")
    harness.turn(3)
    assert harness.admitted == ["leader", "follower-1", "follower-2"]


def test_a_bad_grammar_is_refused(harness: Harness) -> None:
    harness.slow.set()
    harness.enter("bad", BAD)
    harness.turn(1)
    assert "unclosed group" in harness.refused["bad"]
    assert harness.admitted == []


def test_an_aborted_request_is_never_admitted(harness: Harness) -> None:
    harness.slow.set()
    harness.enter("gone", GOOD)
    harness.library.prepare(BAD, lambda error: None).result(timeout=20)
    harness.gate.drop("gone")
    harness.turn(1)
    assert harness.admitted == []
    assert harness.refused == {}


def test_nothing_is_compiled_for_an_aborted_request(harness: Harness) -> None:
    """Symptom: the grammars of clients that were long gone kept others waiting."""
    harness.enter("gone", GOOD)
    harness.enter("there", BAD)
    harness.gate.drop("gone")
    harness.slow.set()
    harness.turn(1)
    assert list(harness.refused) == ["there"]
    assert GOOD not in harness.library


class Panic(BaseException):
    """What a panic in Rust becomes: PyO3's PanicException is no `Exception` either."""


@pytest.mark.parametrize("error_type", [OSError, Panic])
def test_a_compiler_that_fails_in_any_way_refuses_everything(error_type: type[BaseException]) -> None:
    """Symptom: after a panic inside llguidance the request waited for ever. Cause: only `Exception` was caught."""

    def broken() -> GrammarCompiler:
        raise error_type("no tokenizer")

    library = GrammarLibrary(broken)
    answers: queue.SimpleQueue[GrammarError | None] = queue.SimpleQueue()
    library.prepare(GOOD, answers.put)
    assert "no tokenizer" in str(answers.get(timeout=20))
    library.close()
