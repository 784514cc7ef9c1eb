"""A device whose pages remember what was written, and a model that depends on all that a real one may depend on."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan, StepResult
from tandem_runtime.core.sampling import SamplingParams, TokenLogprobs

VOCABULARY = 13


def next_token(tokens: list[int], num_prompt: int, sampling: SamplingParams) -> int:
    """The model and its sampler: a function of everything a real one may depend on."""
    barred = sampling.stop_token_ids if len(tokens) - num_prompt < sampling.min_tokens else ()
    possible = [token for token in range(VOCABULARY) if token not in barred]
    return possible[blake2b(repr((tokens, sampling.seed)).encode(), digest_size=1).digest()[0] % len(possible)]


def expected_output(prompt: list[int], sampling: SamplingParams, context: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < context and len(tokens) - len(prompt) < sampling.max_tokens:
        tokens.append(next_token(tokens, len(prompt), sampling))
        if tokens[-1] in sampling.stop_token_ids:
            break
    return tokens[len(prompt) :]


def kv_values(tokens: list[int], salt: str) -> list[int]:
    """One value per position that depends on all tokens up to it, as KV does."""
    values = []
    value = hash(salt)
    for token in tokens:
        value = hash((value, token))
        values.append(value)
    return values


@dataclass
class Slot:
    tokens: list[int]
    num_prompt: int
    table: list[int]
    sampling: SamplingParams
    sampled_in: int = 0
    """The step that sampled the newest token."""


class Device:
    """Executes plans in order; asserts that each chunk attends to exactly its own sequence."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.pages: dict[int, list[int | None]] = {}
        self.salt_by_seed: dict[int, str] = {}
        self.starts: list[SlotStart] = []
        self._slots: dict[int, Slot] = {}

    def write(self, table: list[int], position: int, value: int | None) -> None:
        page = self.pages.setdefault(table[position // self.page_size], [None] * self.page_size)
        page[position % self.page_size] = value

    def read(self, table: list[int], num_tokens: int) -> list[int | None]:
        held = [value for page in table for value in self.pages.get(page, [None] * self.page_size)]
        return held[:num_tokens]

    def execute(self, plan: StepPlan) -> StepResult:
        """Samples like a runner: at each draft as if those before it were right."""
        slots = [chunk.slot for chunk in plan.chunks]
        assert len(set(slots)) == len(slots)
        for start in plan.starts:
            assert start.slot in slots
            self.starts.append(start)
            tokens = start.prompt_token_ids + start.output_token_ids
            self._slots[start.slot] = Slot(tokens, len(start.prompt_token_ids), list(start.page_ids), start.sampling)
        sampled: list[int] = []
        logprobs: dict[int, TokenLogprobs] = {}
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        for index, chunk in enumerate(plan.chunks):
            slot = self._slots[chunk.slot]
            slot.table += chunk.append_page_ids
            if chunk.token_ids is None:
                assert slot.sampled_in == plan.step - 1, "not sampled by the previous step"
            self._compute(slot, chunk)
            if slot.sampling.prompt_logprobs is not None and chunk.start < slot.num_prompt - 1:
                targets = slot.tokens[chunk.start + 1 : min(chunk.start + chunk.num_tokens + 1, slot.num_prompt)]
                prompt_logprobs[index] = [TokenLogprobs(token, -1.0, 1, []) for token in targets]
            if chunk.sample:
                right = True
                for draft in [*chunk.drafts, None]:
                    token = next_token(slot.tokens, slot.num_prompt, slot.sampling) if right else VOCABULARY
                    if right:
                        slot.tokens.append(token)
                    right = right and token == draft
                    if slot.sampling.logprobs is not None:
                        logprobs[len(sampled)] = TokenLogprobs(token, -0.5, 1, [])
                    sampled.append(token)
                slot.sampled_in = plan.step
        assert plan.num_tokens > 0
        kinds = [chunk.num_tokens > 1 for chunk in plan.chunks]
        assert kinds == sorted(kinds), "decode rows come first"
        return StepResult(plan.step, sampled, logprobs, prompt_logprobs, 0.0, 0.0)

    def _compute(self, slot: Slot, chunk: Chunk) -> None:
        stop = chunk.start + chunk.num_tokens
        tokens = slot.tokens + chunk.drafts
        assert not (chunk.drafts and slot.sampling.constrained)
        assert chunk.token_ids in (None, tokens[chunk.start : stop])
        assert stop <= len(tokens)
        assert chunk.sample <= (stop == len(tokens))
        values = kv_values(tokens[:stop], self.salt_by_seed[slot.sampling.seed])
        assert self.read(slot.table, chunk.start) == values[: chunk.start], "attends to KV that is not its own"
        for position in range(chunk.start, stop):
            self.write(slot.table, position, values[position])
