"""A lost rank is named by its own words, whatever rank 0 heard first."""

from __future__ import annotations

from concurrent.futures import Future

import pytest
from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine.leader import cause, lead

CLOSED = RuntimeError("Connection closed by peer")


def over(value: object) -> Future:
    future: Future = Future()
    if isinstance(value, BaseException):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def dead(error: BaseException) -> Future:
    future: Future = Future()
    future.set_result(error)
    return future


def test_what_all_ranks_do_together_has_rank_0s_result() -> None:
    assert lead(over(7), [Future()]) == 7
    assert lead(over(7), []) == 7


def test_rank_0_does_not_wait_for_a_rank_that_has_ended() -> None:
    """Symptom: rank 1 was killed while it loaded, and the pod hung for five minutes in the ranks' rendezvous."""
    killed = StartupError("rank 1 ended with status -9")
    with pytest.raises(StartupError, match="rank 1 ended with status -9"):
        lead(Future(), [dead(killed), Future()])


def test_a_connection_that_closed_is_explained_by_the_rank_that_closed_it() -> None:
    """Symptom: rank 1 ran out of memory while it loaded, and the pod's reason was gloo's."""
    own = StartupError("rank 1: out of memory")
    with pytest.raises(StartupError, match="rank 1: out of memory"):
        lead(over(CLOSED), [dead(RuntimeError("rank 2: Connection closed by peer")), dead(own)])
    assert cause(CLOSED, [dead(own)]) is own


def test_rank_0s_own_fault_stays_its_own() -> None:
    own = StartupError("--kv-data-port: cannot listen")
    assert cause(own, [dead(StartupError("rank 1 ended with status 1"))]) is own
    assert cause(CLOSED, [Future()]) is CLOSED
    assert cause(CLOSED, []) is CLOSED
