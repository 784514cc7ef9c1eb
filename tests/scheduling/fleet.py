"""A scheduler in a world that can catch it out: a device whose pages remember what was written, and handoff peers."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from scheduling.device import VOCABULARY, Device, expected_output, kv_values
from tandem_runtime.core.plan import SlotStart, StepPlan
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.scheduling import Mode, Scheduler, SchedulerConfig, Sequence, SequenceUpdate, SpeculationConfig
from tandem_runtime.scheduling.speculation import NewProposer


def config(**changes: object) -> SchedulerConfig:
    values: dict[str, object] = {
        "page_size": 4,
        "num_pages": 24,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "max_prefill_tokens_with_decodes": 16,
        "max_model_len": 80,
        "max_waiting": 64,
        "enable_prefix_caching": True,
        "cache_root": b"fingerprint",
    }
    return SchedulerConfig(**(values | changes))  # type: ignore[arg-type]


def speculating(max_batch: int = 4, num_tokens: int = 3) -> SpeculationConfig:
    return SpeculationConfig(num_tokens=num_tokens, lookup_min=1, lookup_max=2, max_batch=max_batch)


class Oracle:
    """Guesses that are right for a while, each time for another one; with the prompts of a test, never foreseeable."""

    def __init__(self, seq: Sequence, context: int) -> None:
        self._num_prompt = len(seq.prompt_token_ids)
        self._expected = expected_output(seq.prompt_token_ids, seq.sampling, context)
        self._known = 0

    def __len__(self) -> int:
        return self._known

    def extend(self, token_ids: Tokens[int]) -> None:
        self._known += len(token_ids)

    def propose(self, count: int) -> list[int]:
        begin = self._known - self._num_prompt
        guess = (self._expected[begin : begin + count] + [0] * count)[:count]
        right = self._known * 7 % 5
        return guess[:right] + [(token + 1) % VOCABULARY for token in guess[right:]]


class Fleet:
    """One scheduler, its device, and peers that gate, reserve, fill, fail and write late."""

    def __init__(self, settings: SchedulerConfig, *, new_proposer: NewProposer | None = None) -> None:
        """`new_proposer`: where the settings ask for speculation; default: an `Oracle`."""
        self.config = settings
        self.scheduler = Scheduler(settings, new_proposer=new_proposer or (lambda seq: Oracle(seq, settings.context)))
        self.device = Device(settings.page_size)
        self.now = 0.0
        self.sequences: dict[str, Sequence] = {}
        """Added and not ended."""
        self.outputs: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        """stop, length, aborted, expired or sent, by request id."""
        self.updates: list[SequenceUpdate] = []
        self.plans: list[StepPlan] = []
        self.granted: dict[str, list[tuple[int, int]]] = {}
        self.held: dict[str, int] = {}
        self.quarantined: dict[str, list[int]] = {}
        self.computed: set[str] = set()

    def add(self, seq: Sequence) -> Sequence:
        self.device.salt_by_seed[seq.sampling.seed] = seq.cache_salt
        self.scheduler.add(seq)
        self.sequences[seq.request_id] = seq
        self.outputs[seq.request_id] = list(seq.output_token_ids)
        self.check()
        return seq

    # The engine loop, in halves.

    def schedule(self) -> StepPlan | None:
        plan = self.scheduler.schedule(self.now)
        if plan is not None:
            assert plan.num_tokens <= self.config.max_num_batched_tokens
            assert len(plan.chunks) <= self.config.max_num_seqs
            started = {start.slot for start in plan.starts}
            decodes = [chunk for chunk in plan.chunks if chunk.num_tokens - chunk.num_drafts == 1 and chunk.sample]
            if any(chunk.slot not in started for chunk in decodes):
                prompts = [chunk for chunk in plan.chunks if chunk.num_tokens > 1 and not chunk.num_drafts]
                prompt_tokens = sum(chunk.num_tokens for chunk in prompts)
                assert prompt_tokens <= self.config.max_prefill_tokens_with_decodes
            self._check_drafts(plan)
            self.plans.append(plan)
        for update in self.scheduler.take_updates():
            self._take(update)
        self.check()
        return plan

    def commit(self) -> list[SequenceUpdate]:
        self.scribble()
        updates = self.scheduler.commit(self.device.execute(self.plans.pop(0)), self.now)
        for update in updates:
            self._take(update)
        self.check()
        return updates

    def _check_drafts(self, plan: StepPlan) -> None:
        unverified = {chunk.slot for before in self.plans for chunk in before.chunks if chunk.num_drafts}
        goes_on = {chunk.slot for chunk in plan.chunks} - {start.slot for start in plan.starts}
        assert not unverified & goes_on, "nobody knows yet where it stands"
        guessed = [chunk for chunk in plan.chunks if chunk.num_drafts]
        if guessed:
            assert self.config.speculation is not None
            assert max(chunk.num_drafts for chunk in guessed) <= self.config.speculation.num_tokens
            assert len(plan.chunks) - len(plan.starts) <= self.config.speculation.max_batch

    def step(self) -> bool:
        """Without running ahead."""
        if not self.plans and self.schedule() is None:
            return False
        self.commit()
        return True

    def drain_plans(self) -> None:
        while self.step():
            pass

    def executed_starts(self, request_id: str) -> list[SlotStart]:
        seed = make(request_id, [0]).sampling.seed
        return [start for start in self.device.starts if start.sampling.seed == seed]

    def _take(self, update: SequenceUpdate) -> None:
        self.updates.append(update)
        seq = self.sequences[update.request_id]
        self.outputs[update.request_id] += update.new_token_ids
        if seq.mode == "prefill_only":
            table = self.scheduler.page_table(update.request_id)
            expected = kv_values(seq.prompt_token_ids[: update.computed_tokens], seq.cache_salt)
            assert self.device.read(table, update.computed_tokens) == expected, "would send pages that are not ready"
            if update.computed_tokens == len(seq.prompt_token_ids) - 1:
                self.computed.add(update.request_id)
        if update.finish_reason is not None:
            self._ended(update.request_id, update.finish_reason)

    def _ended(self, request_id: str, how: str) -> None:
        assert request_id not in self.ended
        self.ended[request_id] = how
        seq = self.sequences.pop(request_id)
        self.computed.discard(request_id)
        context = min(self.config.max_model_len, self.config.num_pages * self.config.page_size)
        expected = expected_output(seq.prompt_token_ids, seq.sampling, context)
        got = self.outputs[request_id]
        if how in ("stop", "length"):
            assert got == expected
            assert how == ("stop" if expected[-1] in seq.sampling.stop_token_ids else "length")
        else:
            assert got == expected[: len(got)]

    # The decode side's peers.

    def hold(self, request_id: str) -> None:
        self.held[request_id] = self.scheduler.hold_prefix(request_id)
        assert self.held[request_id] % self.config.page_size == 0
        assert self.held[request_id] < self.sequences[request_id].num_tokens
        self.check()

    def reserve(self, request_id: str) -> bool:
        slots = self.scheduler.reserve(request_id)
        if slots is not None:
            assert self.granted.setdefault(request_id, slots) == slots
        self.check()
        return slots is not None

    def fill(self, request_id: str) -> None:
        seq = self.sequences[request_id]
        values = kv_values((seq.prompt_token_ids + seq.output_token_ids)[:-1], seq.cache_salt)
        table = [page for page, _ in self.granted.pop(request_id)]
        held = self.held.pop(request_id, 0)
        for position, value in enumerate(values[held:]):
            self.device.write(table, position, value)
        self.scheduler.filled(request_id)
        self.check()

    def fail(self, request_id: str) -> None:
        self.scheduler.make_local(request_id)
        self._quarantine(request_id)
        self.check()

    def quiesce(self, request_id: str) -> None:
        self.quarantined.pop(request_id, None)
        self.scheduler.quiesced(request_id)
        self.check()

    def scribble(self) -> None:
        """What a prefill pod writes to pages that it was granted, or was granted once, at a bad moment."""
        granted = [page for slots in self.granted.values() for page, _ in slots]
        for page in granted + [page for pages in self.quarantined.values() for page in pages]:
            self.device.pages[page] = [666] * self.config.page_size

    def _quarantine(self, request_id: str) -> None:
        self.held.pop(request_id, None)
        pages = [page for page, _ in self.granted.pop(request_id, [])]
        if pages:
            self.quarantined.setdefault(request_id, []).extend(pages)

    # The end.

    def abort(self, request_id: str) -> None:
        assert self.scheduler.abort(request_id) == (request_id in self.sequences)
        if request_id in self.sequences:
            self._quarantine(request_id)
            self._ended(request_id, "aborted")
        self.check()

    def expire(self) -> None:
        overdue = {seq.request_id for seq in self.sequences.values() if (seq.deadline or self.now + 1) <= self.now}
        expired = self.scheduler.expire(self.now)
        assert sorted(expired) == sorted(overdue)
        for request_id in expired:
            self._quarantine(request_id)
            self._ended(request_id, "expired")
        self.check()

    def sent(self, request_id: str) -> None:
        self.scheduler.release(request_id)
        self._ended(request_id, "sent")
        self.check()

    def in_state(self, state: str) -> list[str]:
        return [request_id for request_id, seq in self.sequences.items() if seq.state.value == state]

    def check(self) -> None:
        self.scheduler.check_integrity()

    def drain(self, max_rounds: int = 5000) -> None:
        """Peers behave from now on: everything must end, and every page come back."""
        for request_id in list(self.quarantined):
            self.quiesce(request_id)
        for _ in range(max_rounds):
            if not self.sequences and not self.plans:
                break
            self.now += 0.05
            self.scheduler.near_head(10**9)
            for request_id in self.in_state("gated"):
                self.scheduler.open_gate(request_id)
            for request_id in self.in_state("remote"):
                if self.reserve(request_id):
                    self.fill(request_id)
            for request_id in sorted(self.computed):
                self.sent(request_id)
            self.step()
        assert not self.sequences, f"never ended: {[(s.request_id, s.state) for s in self.sequences.values()]}"
        counters = self.scheduler.counters
        assert counters.pages_used == counters.pages_quarantined == counters.running == counters.waiting == 0


def make(
    request_id: str,
    prompt: list[int],
    *,
    mode: Mode = "local",
    arrival: float = 0.0,
    priority: int = 0,
    deadline: float | None = None,
    cache_salt: str = "",
    max_tokens: int = 4,
    stop: tuple[int, ...] = (),
    prompt_logprobs: int | None = None,
) -> Sequence:
    sampling = SamplingParams(
        max_tokens=max_tokens,
        seed=int.from_bytes(request_id.encode(), "big"),
        stop_token_ids=stop,
        prompt_logprobs=prompt_logprobs,
    )
    return Sequence(
        request_id,
        prompt,
        sampling,
        arrival=arrival,
        priority=priority,
        deadline=deadline,
        cache_salt=cache_salt,
        mode=mode,
    )
