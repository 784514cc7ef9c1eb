from __future__ import annotations

import pytest
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.scheduling.sequence import MAX_PRIORITY, PRIORITY_SECONDS, Sequence


def sequence(prompt: list[int], *, arrival: float = 0.0, priority: int = 0, **sampling: object) -> Sequence:
    params = SamplingParams(**({"max_tokens": 4} | sampling))  # type: ignore[arg-type]
    seq = Sequence("r", prompt, params, arrival=arrival, priority=priority)
    seq.max_outputs = params.max_tokens
    return seq


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 4), (3, 5), (0, 5), (2, 3), (5, 5)])
def test_token_range_runs_over_prompt_and_output(start: int, stop: int) -> None:
    seq = sequence([1, 2, 3])
    seq.output_token_ids = [4, 5]
    assert seq.token_range(start, stop) == [1, 2, 3, 4, 5][start:stop]


def test_a_stop_token_ends_a_sequence_whatever_min_tokens_says() -> None:
    """Structured answers that were whole went on with end tokens, which were billed. Else the sampler bars them."""
    assert sequence([1], stop_token_ids=(9,), min_tokens=2).append_output(9) == "stop"


def test_stop_wins_over_length() -> None:
    seq = sequence([1], stop_token_ids=(9,), max_tokens=1)
    assert seq.append_output(9) == "stop"
    assert sequence([1], max_tokens=1).append_output(9) == "length"


def test_a_sequence_is_not_planned_past_its_known_end() -> None:
    seq = sequence([1, 2], max_tokens=2)
    seq.output_token_ids = [3]
    seq.scheduled_tokens = 2
    assert seq.tokens_to_compute == 1
    seq.in_flight_samples = 1
    seq.scheduled_tokens = 3
    assert seq.tokens_to_compute == 0, "the token in flight is its last"


def test_priority_is_worth_a_bounded_time() -> None:
    assert sequence([1], arrival=100.0, priority=-1).rank < sequence([1], arrival=100.0).rank
    assert sequence([1], arrival=100.0, priority=-1).rank > sequence([1], arrival=99.0 - PRIORITY_SECONDS).rank
    assert sequence([1], priority=-(10**9)).rank == sequence([1], priority=-MAX_PRIORITY).rank
