"""Any interleaving of arrivals, steps, plans ahead, aborts, deadlines and peers; books and KV are checked always."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scheduling.device import VOCABULARY
from scheduling.fleet import Fleet, config, speculating
from tandem_runtime.core.errors import OverloadedError, PromptTooLongError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.scheduling import Mode, Sequence, SpeculationConfig

PROMPTS = st.builds(
    lambda pages, tail: [1] * (4 * pages) + tail,
    st.integers(0, 8),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9),
)
SAMPLING: st.SearchStrategy[dict[str, object]] = st.builds(
    dict,
    max_tokens=st.integers(1, 30),
    min_tokens=st.sampled_from([0, 0, 2]),
    stop_token_ids=st.sampled_from([(), (3,), (0, 1, 2, 4)]),
    prompt_logprobs=st.sampled_from([None, None, None, 0]),
    logprobs=st.sampled_from([None, 0]),
    grammar=st.sampled_from(["", "", "", "{}"]),
)


class SchedulerMachine(RuleBasedStateMachine):
    fleet: Fleet
    number = 0

    @initialize(
        num_pages=st.sampled_from([5, 12, 40]),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(5, 20),
        beside_decodes=st.integers(1, 20),
        caching=st.booleans(),
        speculation=st.sampled_from([None, speculating(max_batch=2), speculating(num_tokens=6)]),
    )
    def start(
        self,
        num_pages: int,
        max_num_seqs: int,
        budget: int,
        beside_decodes: int,
        caching: bool,
        speculation: SpeculationConfig | None,
    ) -> None:
        self.fleet = Fleet(
            config(
                num_pages=num_pages,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=budget,
                max_prefill_tokens_with_decodes=beside_decodes,
                enable_prefix_caching=caching,
                max_waiting=12,
                speculation=speculation,
            )
        )

    @rule(
        prompt=PROMPTS,
        sampling=SAMPLING,
        mode=st.sampled_from(["local", "local", "remote", "prefill_only"]),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "tenant"]),
        patience=st.sampled_from([None, None, 2.0]),
    )
    def arrive(
        self,
        prompt: list[int],
        sampling: dict[str, object],
        mode: Mode,
        priority: int,
        salt: str,
        patience: float | None,
    ) -> None:
        self.number += 1
        seq = Sequence(
            f"r{self.number}",
            prompt,
            SamplingParams(**(sampling | {"seed": self.number})),  # type: ignore[arg-type]
            arrival=self.fleet.now,
            deadline=None if patience is None else self.fleet.now + patience,
            priority=priority,
            cache_salt=salt,
            mode=mode,
        )
        with suppress(OverloadedError, PromptTooLongError):
            self.fleet.add(seq)

    @rule(seconds=st.sampled_from([0.1, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.fleet.now += seconds
        self.fleet.expire()

    @precondition(lambda self: len(self.fleet.plans) < 2)
    @rule()
    def schedule(self) -> None:
        self.fleet.schedule()

    @precondition(lambda self: self.fleet.plans)
    @rule()
    def commit(self) -> None:
        self.fleet.commit()

    @precondition(lambda self: len(self.fleet.plans) < 2)
    @rule(steps=st.integers(1, 12))
    def run_ahead(self, steps: int) -> None:
        for _ in range(steps):
            if len(self.fleet.plans) < 2:
                self.fleet.schedule()
            if self.fleet.plans:
                self.fleet.commit()

    @precondition(lambda self: self.fleet.sequences)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.fleet.abort(data.draw(st.sampled_from(list(self.fleet.sequences))))

    @precondition(lambda self: self.fleet.in_state("remote"))
    @rule(data=st.data(), act=st.sampled_from(["hold", "reserve", "reserve", "reserve", "fail"]))
    def decode_peer(self, data: st.DataObject, act: str) -> None:
        request_id = data.draw(st.sampled_from(self.fleet.in_state("remote")))
        if act == "fail":
            self.fleet.fail(request_id)
        elif act == "reserve":
            self.fleet.reserve(request_id)
        elif request_id not in self.fleet.held and request_id not in self.fleet.granted:
            self.fleet.hold(request_id)

    @precondition(lambda self: self.fleet.granted)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        self.fleet.fill(data.draw(st.sampled_from(list(self.fleet.granted))))

    @precondition(lambda self: self.fleet.quarantined)
    @rule(data=st.data())
    def quiesce(self, data: st.DataObject) -> None:
        self.fleet.quiesce(data.draw(st.sampled_from(list(self.fleet.quarantined))))

    @precondition(lambda self: self.fleet.in_state("gated"))
    @rule(horizon=st.integers(1, 60))
    def prefill_peer(self, horizon: int) -> None:
        for request_id in self.fleet.scheduler.near_head(horizon):
            self.fleet.scheduler.open_gate(request_id)
        self.fleet.check()

    @precondition(lambda self: self.fleet.computed)
    @rule(data=st.data())
    def sent(self, data: st.DataObject) -> None:
        self.fleet.sent(data.draw(st.sampled_from(sorted(self.fleet.computed))))

    def teardown(self) -> None:
        if hasattr(self, "fleet"):
            self.fleet.drain()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
