"""Requests wait for their grammars outside the scheduler, in order, and without holding up others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.slow_grammars import VOCAB_SIZE, SlowGrammars, slow_grammars
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine import grammar_gate
from tandem_runtime.engine.messages import EngineRequest
from tandem_runtime.grammar import sources
from tandem_runtime.grammar.compiler import GrammarCompiler
from tandem_runtime.grammar.table import ConstraintTable

GOOD = sources.combine(sources.of_choices(["a"]))
BAD = sources.combine(sources.of_regex("("))


class Harness:
    def __init__(self, grammars: SlowGrammars) -> None:
        self.grammars = grammars
        self.admitted: list[str] = []
        self.refused: dict[str, str] = {}

    def enter(self, request_id: str, grammar: str = "", *, room: int = 8) -> None:
        sampling = SamplingParams(max_tokens=5, grammar=grammar)
        self.grammars.gate.enter(
            EngineRequest(request_id=request_id, prompt_token_ids=[1], sampling=sampling),
            0.0,
            room=room,
            admit=lambda admitted, _: self.admitted.append(admitted.request_id),
            refuse=lambda refused, error: self.refused.update({refused.request_id: str(error)}),
        )

    def leave(self, request_id: str) -> None:
        self.grammars.gate.leave(request_id)

    def turn(self, events: int) -> None:
        for _ in range(events):
            self.grammars.next_event()()


@pytest.fixture
def harness() -> Iterator[Harness]:
    with slow_grammars() as grammars:
        yield Harness(grammars)


def test_others_go_ahead_while_a_grammar_is_compiled(harness: Harness) -> None:
    harness.enter("constrained", GOOD)
    harness.enter("plain")
    assert harness.admitted == ["plain"]
    harness.grammars.slow.set()
    harness.turn(1)
    assert harness.admitted == ["plain", "constrained"]
    harness.enter("again", GOOD)
    assert harness.admitted[-1] == "again"


def test_followers_stay_behind_their_leader(harness: Harness) -> None:
    """Else each of n choices would compute the prompt by itself."""
    harness.enter("leader", GOOD)
    harness.enter("follower-1", GOOD)
    harness.grammars.slow.set()
    ready = harness.grammars.next_event()
    # It is compiled, though the engine has not heard of it.
    harness.enter("follower-2", GOOD)
    ready()
    assert harness.admitted == ["leader", "follower-1", "follower-2"]


def test_a_grammar_is_compiled_once_for_all_who_wait_for_it(harness: Harness) -> None:
    for request_id in ("first", "second", "third"):
        harness.enter(request_id, GOOD)
    harness.leave("first")
    harness.enter("bad", BAD)
    harness.grammars.slow.set()
    harness.turn(2)
    assert harness.grammars.inbox.empty()
    assert harness.admitted == ["second", "third"]
    assert list(harness.refused) == ["bad"]


def test_a_bad_grammar_is_refused(harness: Harness) -> None:
    harness.grammars.slow.set()
    harness.enter("bad", BAD)
    harness.turn(1)
    assert "unclosed group" in harness.refused["bad"]
    assert harness.admitted == []


def test_an_aborted_request_is_never_admitted(harness: Harness) -> None:
    harness.grammars.slow.set()
    harness.enter("gone", GOOD)
    ready = harness.grammars.next_event()
    harness.leave("gone")
    ready()
    assert harness.admitted == []
    assert harness.refused == {}
    harness.enter("next", GOOD)
    assert harness.admitted == ["next"], "what was compiled is kept for a while"


def test_nothing_is_compiled_for_an_aborted_request(harness: Harness) -> None:
    """Symptom: the grammars of clients that were long gone kept others waiting."""
    harness.enter("gone", GOOD)
    harness.enter("there", BAD)
    harness.leave("gone")
    harness.grammars.slow.set()
    harness.turn(1)
    assert list(harness.refused) == ["there"]
    assert harness.grammars.library.find(GOOD) is None
    assert harness.grammars.inbox.empty()


def test_the_grammars_of_all_admitted_requests_stay_and_no_step_compiles(harness: Harness) -> None:
    """Symptom: with 129 requests waiting the first one's grammar was dropped, and compiled again while a step waited.

    Here two are kept without need, and 200 requests wait.
    """
    count = 200
    grammars = [sources.combine(sources.of_choices([f"answer {i}"])) for i in range(count)]
    for i, grammar in enumerate(grammars):
        harness.enter(f"request-{i}", grammar, room=count)
    harness.grammars.slow.set()
    harness.turn(count)
    assert len(harness.admitted) == count
    harness.grammars.compilations.close()  # nothing compiles from here on
    table = ConstraintTable(harness.grammars.library, max_num_seqs=count, vocab_size=VOCAB_SIZE)
    for i, grammar in enumerate(grammars):
        told = list(f"answer {i}".encode())
        table.start(i, SamplingParams(max_tokens=99, grammar=grammar), told[:-1])
        mask = table.allowed(i)
        assert mask is not None
        assert table.failure(i) is None
        assert [token for token in range(VOCAB_SIZE) if mask[token >> 3] >> (token & 7) & 1] == told[-1:]
    table.close()
    for i in range(count):
        harness.leave(f"request-{i}")
    assert sum(harness.grammars.library.find(grammar) is not None for grammar in grammars) == 2


def test_all_that_is_in_use_is_bounded(harness: Harness) -> None:
    large = 60_000
    count = grammar_gate.MOST_CHARS // large
    for i in range(count):
        harness.enter(f"request-{i}", f"{i} {'x' * (large - 10)}", room=count)
    harness.enter("same", f"0 {'x' * (large - 10)}", room=count + 1)
    assert harness.refused == {}
    harness.enter("one more", "y" * large, room=count + 2)
    assert "too many large structures" in harness.refused["one more"]
    harness.leave("request-1")
    harness.enter("after", "y" * large, room=count + 2)
    assert list(harness.refused) == ["one more"]


class Panic(BaseException):
    """What a panic in Rust becomes: PyO3's PanicException is no `Exception` either."""


@pytest.mark.parametrize("error_type", [OSError, Panic])
def test_a_compiler_that_fails_in_any_way_refuses_everything(error_type: type[BaseException]) -> None:
    """Symptom: after a panic inside llguidance the request waited for ever. Cause: only `Exception` was caught."""

    def broken() -> GrammarCompiler:
        raise error_type("no tokenizer")

    with slow_grammars(broken) as grammars:
        harness = Harness(grammars)
        grammars.slow.set()
        harness.enter("any", GOOD)
        harness.turn(1)
        assert "no tokenizer" in harness.refused["any"]
