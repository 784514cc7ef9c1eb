"""Compiles grammars on threads of their own, so that neither the engine's loop nor a step waits for it.

Every grammar gets a short try first. What takes more waits behind others of its kind: ordinary schemas, a millisecond
each, never wait for those that take half a second.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from llguidance import LLMatcher

from tandem_runtime.core.errors import GrammarError, OverloadedError, RequestError
from tandem_runtime.grammar.compiler import GrammarCompiler, Limits

MOST_COSTLY = 16
"""Grammars that wait for a long try; the last one for some ten seconds."""

Outcome = LLMatcher | RequestError


@dataclass(eq=False, slots=True)
class Compilation:
    grammar: str
    on_done: Callable[[Outcome], None]
    cancelled: bool = False


class CompileQueue:
    def __init__(self, make_compiler: Callable[[], GrammarCompiler], *, threads: int | None = None) -> None:
        """`make_compiler` is called at once, on one of the `threads`; as many of them again make long tries."""
        count = threads or min(4, 1 + len(os.sched_getaffinity(0)) // 8)
        self._short = _Lane("grammar-short", count, lambda job: self._compile(job, Limits.SHORT))
        self._long = _Lane("grammar-long", count, lambda job: self._compile(job, Limits.LONG))
        self._compiler: Future[GrammarCompiler] = self._short.threads.submit(make_compiler)

    def wait(self) -> None:
        """Until the compiler is there, or cannot be: llguidance holds the GIL while it reads a vocabulary."""
        concurrent.futures.wait([self._compiler])

    def begin(self, grammar: str, on_done: Callable[[Outcome], None]) -> Compilation:
        """Calls `on_done` on one of the queue's threads: with a matcher at its beginning, or with why there is none.

        Never, or in vain, when the compilation is cancelled first.
        """
        job = Compilation(grammar, on_done)
        self._short.add(job)
        return job

    def cancel(self, job: Compilation) -> None:
        """It is not begun any more; a try that has begun goes on, and is the last."""
        job.cancelled = True
        self._short.remove(job)
        self._long.remove(job)

    def close(self) -> None:
        self._short.close()
        self._long.close()

    def _compile(self, job: Compilation, limits: Limits) -> None:
        outcome: Outcome
        if job.cancelled:
            return
        try:
            outcome = self._compiler.result().compile(job.grammar, limits)
        except GrammarError as error:
            if limits is Limits.SHORT and (job.cancelled or self._long.add(job, most=MOST_COSTLY)):
                return
            outcome = error if limits is Limits.LONG else _too_many()
        except BaseException as error:  # of the tokenizer, or a panic inside llguidance, which is no `Exception`
            outcome = GrammarError(f"the structure cannot be enforced: {error}")
        job.on_done(outcome)


class _Lane:
    """Threads that take what was added first."""

    def __init__(self, name: str, threads: int, work: Callable[[Compilation], None]) -> None:
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_give_way)
        self._work = work
        self._lock = threading.Lock()
        self._waiting: dict[Compilation, None] = {}

    def add(self, job: Compilation, *, most: int | None = None) -> bool:
        """False, and nothing is added, when as many as `most` are waiting."""
        with self._lock:
            if most is not None and len(self._waiting) >= most:
                return False
            self._waiting[job] = None
        self.threads.submit(self._next)
        return True

    def remove(self, job: Compilation) -> None:
        with self._lock:
            self._waiting.pop(job, None)

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        with self._lock:
            job = next(iter(self._waiting), None)
            if job is None:
                return  # removed
            del self._waiting[job]
        self._work(job)


def _give_way() -> None:
    # To the threads that compute steps: on Linux a thread has a priority of its own.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _too_many() -> OverloadedError:
    return OverloadedError("too many large structures are being prepared already; try again later")
