"""Guesses in plans: what is guessed, in which pages, what becomes of wrong ones, and who waits for whom."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

import msgspec
from scheduling.device import expected_output
from scheduling.fleet import Fleet, config, make, speculating
from tandem_runtime.core.plan import StepPlan, StepResult
from tandem_runtime.core.sampling import SamplingParams, Thinking
from tandem_runtime.scheduling import Scheduler, Sequence
from tandem_runtime.scheduling.speculation import MAX_TAKEN, NewProposer, num_accepted

PROMPT = [1, 2, 3, 4, 5]


class Guess:
    """The first `right` guesses are."""

    def __init__(self, seq: Sequence, right: int) -> None:
        self._seq = seq
        self._right = right
        self._taken: list[int] = []

    def __len__(self) -> int:
        return len(self._taken)

    def extend(self, token_ids: Tokens[int]) -> None:
        self._taken += token_ids

    def propose(self, count: int) -> list[int]:
        """Guesses past the end of the answer too."""
        assert self._taken == self._seq.prompt_token_ids + self._seq.output_token_ids
        endless = msgspec.structs.replace(self._seq.sampling, max_tokens=count, stop_token_ids=())
        text = expected_output(self._taken, endless, 10**6)
        return text[: self._right] + [token + 100 for token in text[self._right :]]


def guessing(right: int) -> NewProposer:
    return lambda seq: Guess(seq, right)


def shape(plan: StepPlan | None) -> list[tuple[int, int, int]]:
    """Start, tokens, drafts."""
    assert plan is not None
    return [(chunk.start, chunk.num_tokens, chunk.num_drafts) for chunk in plan.chunks]


def after_prompts(fleet: Fleet, *sequences: Sequence) -> Fleet:
    for seq in sequences:
        fleet.add(seq)
    fleet.step()
    return fleet


def test_right_guesses_save_steps_and_wrong_ones_cost_none() -> None:
    for right, starts in ((3, [5, 9, 13]), (1, [5, 7, 9, 11, 13, 15]), (0, list(range(5, 16)))):
        fleet = Fleet(config(speculation=speculating()), new_proposer=guessing(right))
        after_prompts(fleet, make("r", PROMPT, max_tokens=12))
        seen = []
        while fleet.sequences:
            seen += [start for start, _, _ in shape(fleet.schedule())]
            fleet.commit()
        assert seen == starts
    counters = fleet.scheduler.counters
    assert (counters.generation_tokens, counters.accepted_tokens) == (12, 0)


def test_nothing_is_planned_before_it_is_known_which_guesses_were_right() -> None:
    fleet = after_prompts(
        Fleet(config(speculation=speculating()), new_proposer=guessing(2)), make("r", PROMPT, max_tokens=12)
    )
    assert shape(fleet.schedule()) == [(5, 4, 3)]
    assert fleet.schedule() is None
    (update,) = fleet.commit()
    assert len(update.new_token_ids) == 3
    assert (update.draft_tokens, update.accepted_tokens, update.computed_tokens) == (3, 2, 8)
    assert shape(fleet.schedule()) == [(8, 4, 3)]


def test_a_sequence_that_cannot_be_guessed_waits_with_the_others() -> None:
    """Planned ahead while others wait, it would have every other step for itself: twice the steps for all."""
    fleet = Fleet(config(speculation=speculating()), new_proposer=guessing(0))
    constrained = make("constrained", PROMPT, max_tokens=9)
    constrained.sampling = msgspec.structs.replace(constrained.sampling, grammar="{}")
    after_prompts(fleet, constrained, make("free", PROMPT[::-1], max_tokens=9))
    for _ in range(4):
        drafts = [chunk.num_drafts for chunk in fleet.schedule().chunks]
        assert sorted(drafts) == [0, 3]
        assert fleet.schedule() is None
        fleet.commit()


def test_no_step_waits_for_sequences_that_cannot_be_guessed() -> None:
    fleet = Fleet(config(speculation=speculating()), new_proposer=guessing(3))
    masked = {"grammar": {"grammar": "{}"}, "thought": {"thinking": Thinking(open_id=1, close_id=2, budget=3)}}
    for number, (name, changes) in enumerate(masked.items()):
        seq = make(name, [number] * 5, max_tokens=9)
        seq.sampling = msgspec.structs.replace(seq.sampling, **changes)
        fleet.add(seq)
    fleet.schedule()
    ahead = fleet.schedule()
    assert ahead is not None
    assert [(chunk.token_ids, chunk.num_drafts) for chunk in ahead.chunks] == [(None, 0), (None, 0)]


def test_prompts_are_computed_one_step_ahead_as_ever() -> None:
    fleet = Fleet(config(speculation=speculating()), new_proposer=guessing(3))
    fleet.add(make("long", [1] * 40))
    assert shape(fleet.schedule()) == [(0, 16, 0)]
    assert shape(fleet.schedule()) == [(16, 16, 0)]


def test_above_the_batch_size_nobody_is_guessed_and_steps_are_planned_ahead() -> None:
    fleet = Fleet(config(speculation=speculating(max_batch=2)), new_proposer=guessing(3))
    after_prompts(fleet, *(make(str(n), [n] * 5, max_tokens=length) for n, length in enumerate((3, 20, 20))))
    assert [shape(fleet.schedule()) for _ in range(2)] == [[(5, 1, 0)] * 3, [(6, 1, 0)] * 3]
    fleet.commit()
    assert fleet.schedule() is not None, "the first one is known to end with the step in flight, the others go on"
    fleet.commit()
    assert fleet.ended == {"0": "length"}
    assert fleet.schedule() is None
    fleet.commit()
    assert shape(fleet.schedule()) == [(8, 4, 3)] * 2
    fleet.drain()


def test_a_newcomer_beyond_the_batch_size_waits_for_what_is_being_verified() -> None:
    """Planned at once, it would go on alone in every other step."""
    fleet = Fleet(config(speculation=speculating(max_batch=1)), new_proposer=guessing(3))
    after_prompts(fleet, make("r", PROMPT, max_tokens=20))
    fleet.add(make("newcomer", [2] * 5, max_tokens=20))
    assert shape(fleet.schedule()) == [(5, 4, 3), (0, 5, 0)]
    assert fleet.schedule() is None
    fleet.commit()
    assert [shape(fleet.schedule()) for _ in range(2)] == [[(9, 1, 0), (5, 1, 0)], [(10, 1, 0), (6, 1, 0)]]
    fleet.commit()
    fleet.commit()
    fleet.drain()


def test_an_answer_never_runs_over_its_length_or_the_context() -> None:
    for max_tokens, context in ((6, 80), (50, 12)):
        fleet = Fleet(config(speculation=speculating(), max_model_len=context), new_proposer=guessing(3))
        after_prompts(fleet, make("r", PROMPT, max_tokens=max_tokens))
        widths = []
        while fleet.sequences:
            widths += [tokens for _, tokens, _ in shape(fleet.schedule())]
            fleet.commit()
        assert widths == ([4, 1] if max_tokens == 6 else [4, 2])
        assert fleet.ended == {"r": "length"}


def test_what_follows_a_stop_token_among_right_guesses_is_dropped() -> None:
    probe = make("r", PROMPT, max_tokens=20)
    answer = expected_output(PROMPT, probe.sampling, 80)
    stop = answer[2]
    assert answer.index(stop) == 2
    fleet = Fleet(config(speculation=speculating()), new_proposer=guessing(3))
    after_prompts(fleet, make("r", PROMPT, max_tokens=20, stop=(stop,)))
    fleet.schedule()
    (update,) = fleet.commit()
    assert update.new_token_ids == answer[1:3]
    assert (update.finish_reason, update.stop_token_id, update.accepted_tokens) == ("stop", stop, 2)
    assert update.computed_tokens == len(PROMPT) + 3, "the KV of what was dropped belongs to no token"
    assert fleet.scheduler.counters.pages_used == 0


def test_each_accepted_token_has_its_logprobs() -> None:
    seq = make("r", PROMPT, max_tokens=9)
    seq.sampling = msgspec.structs.replace(seq.sampling, logprobs=0)
    fleet = after_prompts(Fleet(config(speculation=speculating()), new_proposer=guessing(2)), seq)
    fleet.schedule()
    (update,) = fleet.commit()
    assert update.logprobs is not None
    assert [entry.token_id for entry in update.logprobs] == update.new_token_ids
    assert len(update.new_token_ids) == 3


def test_wrong_guesses_do_not_get_into_the_prefix_cache() -> None:
    """Their KV fills the rest of a page that a right token must not be found in."""
    fleet = Fleet(config(speculation=speculating(num_tokens=7)), new_proposer=guessing(1))
    seq = after_prompts(fleet, make("r", PROMPT, max_tokens=20)).sequences["r"]
    plan = fleet.schedule()
    assert plan is not None
    assert plan.chunks[0].token_ids is not None
    guessed = PROMPT + plan.chunks[0].token_ids
    fleet.commit()
    assert seq.computed_tokens == 7
    assert fleet.scheduler.match_prefix([*guessed, 0], "") == 4
    fleet.drain()


def test_nobody_is_preempted_for_a_guess() -> None:
    """Two sequences fill the pool to the last page but the ones that they need next."""
    fleet = Fleet(config(num_pages=4, speculation=speculating(), enable_prefix_caching=False), new_proposer=guessing(0))
    after_prompts(fleet, make("a", [1] * 3, max_tokens=6), make("b", [2] * 3, max_tokens=6))
    assert shape(fleet.schedule()) == [(3, 1, 0), (3, 1, 0)], "a draft would need the second page"
    fleet.commit()
    assert shape(fleet.schedule()) == [(4, 4, 3), (4, 4, 3)], "the token itself needed it"
    fleet.drain()
    assert fleet.scheduler.counters.preemptions == 0


def test_guesses_leave_a_prompt_half_of_the_step() -> None:
    fleet = Fleet(config(speculation=speculating(num_tokens=15)), new_proposer=guessing(2))
    after_prompts(fleet, make("r", PROMPT, max_tokens=40))
    fleet.add(make("long", [2] * 40))
    assert shape(fleet.schedule()) == [(5, 8, 7), (0, 8, 0)]
    fleet.commit()
    fleet.drain()


def test_a_last_prompt_token_can_be_guessed_from() -> None:
    fleet = Fleet(config(speculation=speculating(), max_num_batched_tokens=8), new_proposer=guessing(3))
    fleet.add(make("r", [1] * 9, max_tokens=9))
    fleet.step()
    assert shape(fleet.schedule()) == [(8, 4, 3)]
    fleet.drain()


def test_a_long_prompt_is_learnt_in_pieces_while_steps_go_on() -> None:
    tokens = 2 * MAX_TAKEN + 50
    settings = config(num_pages=tokens // 4 + 9, max_model_len=tokens + 30, max_num_batched_tokens=tokens)
    fleet = Fleet(msgspec.structs.replace(settings, speculation=speculating()), new_proposer=guessing(3))
    after_prompts(fleet, make("long", [1] * tokens, max_tokens=20))
    drafts = []
    for _ in range(3):
        drafts += [count for _, _, count in shape(fleet.schedule())]
        fleet.commit()
    assert drafts == [0, 0, 3]
    fleet.abort("long")


def test_num_accepted() -> None:
    assert num_accepted([], [5]) == 0
    assert num_accepted([5, 6, 7], [5, 6, 7, 8]) == 3
    assert num_accepted([5, 6, 7], [5, 0, 7, 8]) == 1
    assert num_accepted([5], [6, 6]) == 0


def test_prompt_lookup_is_what_guesses_by_default() -> None:
    scheduler = Scheduler(config(speculation=speculating(), max_num_batched_tokens=4))
    scheduler.add(Sequence("r", [7, 8, 9, 7, 8], SamplingParams(max_tokens=9), arrival=0.0))
    plan = scheduler.schedule(0.0)
    assert plan is not None
    scheduler.commit(StepResult(plan.step, [], {}, {}, 0.0, 0.0), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert plan.chunks[0].token_ids == [8, 9]
    assert plan.chunks[0].drafts == [9], "half of what is left of the step"
