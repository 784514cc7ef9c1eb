"""Long random runs, reproducible by seed: more sequences and more pressure than the state machine's short examples."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from scheduling.device import VOCABULARY, expected_output
from scheduling.fleet import Fleet, config, speculating
from tandem_runtime.core.errors import OverloadedError, PromptTooLongError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.scheduling import Mode, Sequence


def random_sequence(
    rng: random.Random, number: int, now: float, modes: list[Mode], *, longest: int, context: int
) -> Sequence:
    # Few distinct tokens and beginnings, so that prefixes meet often.
    beginning = [rng.randrange(2)] * (4 * rng.randrange(5))
    prompt = beginning + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest))]
    sampling = SamplingParams(
        max_tokens=rng.randint(1, 40),
        min_tokens=rng.choice([0, 0, 3]),
        seed=number,
        stop_token_ids=rng.choice([(), (5,), (1, 2)]),
        logprobs=rng.choice([None, 1]),
        prompt_logprobs=rng.choice([None, None, None, 0]),
        grammar=rng.choice(["", "", "", "{}"]),
    )
    mode = rng.choice(modes)
    # Some come from another pod, with the outputs they had there.
    whole = expected_output(prompt, sampling, context)
    resumed = mode != "prefill_only" and sampling.prompt_logprobs is None and bool(whole) and rng.random() < 0.3
    return Sequence(
        f"r{number}",
        prompt,
        sampling,
        output_token_ids=whole[: rng.randrange(len(whole))] if resumed else (),
        arrival=now,
        deadline=rng.choice([None, None, now + rng.uniform(0.5, 20)]),
        priority=rng.randint(-1, 1),
        cache_salt=rng.choice(["", "", "tenant"]),
        mode=mode,
    )


@pytest.mark.parametrize("max_batch", [0, 2, 4])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    "modes", [["local"], ["local", "remote"], ["prefill_only"], ["local", "remote", "prefill_only"]]
)
@pytest.mark.parametrize("num_pages", [9, 24, 100])
def test_everything_ends_and_nothing_leaks(modes: list[Mode], num_pages: int, ahead: bool, max_batch: int) -> None:
    """`max_batch`: most that are speculated on at once; 0: no speculation."""
    rng = random.Random(repr((modes, num_pages, ahead)))
    settings = config(
        num_pages=num_pages,
        max_waiting=20,
        max_prefill_tokens_with_decodes=rng.choice([1, 6, 16]),
        speculation=speculating(max_batch) if max_batch else None,
    )
    context = min(settings.max_model_len, num_pages * settings.page_size)
    fleet = Fleet(settings)
    number = 0
    for _ in range(600):
        fleet.now += 0.05
        if rng.random() < 0.3:
            number += 1
            with suppress(OverloadedError, PromptTooLongError):
                fleet.add(random_sequence(rng, number, fleet.now, modes, longest=40, context=context))
        if rng.random() < 0.05 and fleet.sequences:
            fleet.abort(rng.choice(list(fleet.sequences)))
        if rng.random() < 0.1:
            fleet.expire()
        for request_id in fleet.in_state("remote"):
            act_for_peer(rng, fleet, request_id)
        for request_id in fleet.scheduler.near_head(30):
            if request_id in fleet.in_state("gated") and rng.random() < 0.9:
                fleet.scheduler.open_gate(request_id)
        for request_id in sorted(fleet.computed):
            if rng.random() < 0.3:
                fleet.sent(request_id)
        for request_id in list(fleet.quarantined):
            if rng.random() < 0.1:
                fleet.quiesce(request_id)
        if ahead and len(fleet.plans) < 2:
            fleet.schedule()
            if len(fleet.plans) == 2 or rng.random() < 0.1:
                fleet.commit() if fleet.plans else None
        else:
            fleet.step()
    fleet.drain()
    assert len(fleet.ended) > 20
    counters = fleet.scheduler.counters
    assert (counters.accepted_tokens > 20) == (max_batch > 0 and modes != ["prefill_only"])
    assert counters.accepted_tokens <= counters.draft_tokens


def act_for_peer(rng: random.Random, fleet: Fleet, request_id: str) -> None:
    dice = rng.random()
    if request_id in fleet.granted:
        if dice < 0.2:
            fleet.fill(request_id)
        elif dice < 0.23:
            fleet.fail(request_id)
    elif request_id not in fleet.held:
        fleet.hold(request_id)
    elif dice < 0.3:
        fleet.reserve(request_id)
    elif dice < 0.32:
        fleet.fail(request_id)
