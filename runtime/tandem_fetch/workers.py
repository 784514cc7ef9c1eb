"""Actions in parallel, on threads that no process waits for when it is told to end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def run_all(actions: Iterable[Callable[[], T]], *, parallelism: int, stop: threading.Event) -> list[T]:
    """Results in order. The first error sets `stop`, which the actions heed, and is raised when all have ended.

    What is no `Exception`, as an interrupt, is raised at once: a worker may hang on a server's answer for a minute, so
    the threads of `ThreadPoolExecutor`, which are joined when the interpreter ends, would not do.
    """
    todo = deque(enumerate(actions))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            try:
                number, action = todo.popleft()
            except IndexError:
                return
            try:
                results[number] = action()
            except BaseException as error:
                errors.append(error)
                stop.set()

    threads = [
        threading.Thread(target=work, name=f"fetch-{n}", daemon=True) for n in range(min(parallelism, len(todo)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        raise
    if errors:
        raise errors[0]
    return [results[number] for number in sorted(results)]
