"""The state of one engine pod as its HTTP handlers see it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

from tandem_contract.flags import ServeFlags
from tandem_contract.status import PodStatus
from tandem_http.body import PACE, Pace
from tandem_tracing.spans import OFF, Tracing

from tandem_runtime.core.errors import RequestError, UnknownModelError
from tandem_runtime.engine.client import EngineClient, EngineInfo
from tandem_runtime.engine.messages import EngineStatus, SignedTicket
from tandem_runtime.server import continuation
from tandem_runtime.server.auth import Clients, Tickets
from tandem_runtime.server.errors import UnavailableError
from tandem_runtime.server.metrics import Metrics
from tandem_runtime.server.sampling_defaults import NEUTRAL, SamplingDefaults
from tandem_runtime.text.reasoning import ThinkingTokens
from tandem_runtime.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    engine: EngineClient
    tokenizer: Tokenizer
    splits_reasoning: bool
    defaults: SamplingDefaults = NEUTRAL

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    @cached_property
    def continuation(self) -> str:
        return continuation.digest(
            self.info, self.tokenizer, splits_reasoning=self.splits_reasoning, defaults=self.defaults
        )

    def thinking_tokens(self) -> ThinkingTokens | None:
        """None where the model does not think, or its thoughts are not told from its answers."""
        return self.tokenizer.thinking_tokens() if self.splits_reasoning else None


@dataclass(slots=True, kw_only=True)
class Pod:
    name: str
    flags: ServeFlags
    models: tuple[str, ...]
    """Served names, the primary first."""
    clients: Clients
    tickets: Tickets
    started_at: int
    """Unix seconds."""
    pace: Pace = PACE
    """Of request bodies."""
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = OFF
    loaded: LoadedModel | None = None
    """None while the model loads."""
    draining: bool = False
    cut_off: bool = False
    """The drain timeout has passed; requests still in flight are being ended."""
    in_flight: set[asyncio.Task[object]] = field(default_factory=set)
    """Handlers of generation requests."""
    engine_idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether the engine has neither running nor waiting sequences."""
    _serials: count[int] = field(default_factory=count)
    _seeds: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._seeds = random.Random(self.flags.seed)
        self.engine_idle.set()

    @property
    def ready(self) -> bool:
        return self.loaded is not None and self.loaded.engine.alive and not self.draining

    @property
    def continuation(self) -> str:
        """As in `PodStatus`."""
        return self.loaded.continuation if self.loaded is not None else ""

    def observe(self, status: EngineStatus) -> None:
        """To be called with every status of the engine, in order."""
        self.metrics.observe(status)
        if status.running + status.waiting + status.handoffs_open:
            self.engine_idle.clear()
        else:
            self.engine_idle.set()

    def check_name(self, name: str) -> None:
        """Raises `UnknownModelError`."""
        if name not in self.models:
            served = ", ".join(self.models)
            raise UnknownModelError(f"the model '{name}' is not served here; served: {served}", param="model")

    def model(self, name: str | None) -> LoadedModel:
        """`name`: as the client gave it. Raises `UnknownModelError`, `UnavailableError`."""
        if name is not None:
            self.check_name(name)
        if self.loaded is None:
            raise UnavailableError("the model is still loading")
        return self.loaded

    def accept_tickets(self, header: str | None) -> list[SignedTicket]:
        """Those of the `TICKET` header that are honoured. One that is not costs the client nothing but time: the
        prompt is computed here."""
        good, refused = self.tickets.sift(header)
        for error in refused:
            logger.warning("ticket not honoured: %s", error)
            self.metrics.tickets_refused.labels(error.reason).inc()
        return good

    @contextmanager
    def flight(self) -> Iterator[None]:
        """Around a generation request. Raises `UnavailableError` while draining, and when drained away."""
        if self.draining:
            raise UnavailableError("this pod is shutting down")
        task = asyncio.current_task()
        assert task is not None
        self.in_flight.add(task)
        try:
            yield
        except asyncio.CancelledError as error:
            raise self.refusal(error) from None
        finally:
            self.in_flight.discard(task)

    def refusal(self, error: RequestError | asyncio.CancelledError) -> RequestError:
        """What to tell the client of a request that ended in `error`; raises a cancellation that is not ours."""
        if isinstance(error, RequestError):
            return error
        task = asyncio.current_task()
        if not self.cut_off or task is None:
            raise error
        task.uncancel()
        return UnavailableError("this pod shut down before the answer was complete")

    def engine_request_id(self, request_id: str) -> str:
        """Unique in this process even where a client repeats its ids; the part before the dash is the gateway's."""
        return f"{request_id}-{next(self._serials)}"

    def new_seed(self) -> int:
        return self._seeds.getrandbits(62)

    def status(self) -> PodStatus:
        info = self.loaded.info if self.loaded else None
        engine = self.loaded.engine.status if self.loaded else None
        return PodStatus(
            name=self.name,
            role=self.flags.role,
            incarnation=info.incarnation if info else "",
            models=self.models,
            fingerprint=info.fingerprint.digest() if info else "",
            continuation=self.continuation,
            max_model_len=info.max_model_len if info else 0,
            page_size=info.page_size if info else 0,
            handoff_port=self.flags.handoff_port,
            running=engine.running if engine else 0,
            waiting=engine.waiting if engine else 0,
            waiting_tokens=engine.waiting_tokens if engine else 0,
            max_waiting=info.max_waiting if info else 0,
            kv_pages_total=engine.kv_pages_total if engine else 0,
            kv_pages_used=engine.kv_pages_used if engine else 0,
            ready=self.ready,
            draining=self.draining,
        )
