from __future__ import annotations

import time
from collections.abc import Callable

from tandem_cluster.errors import ClusterError


def wait_for(what: str, condition: Callable[[], object], seconds: float) -> None:
    """Asks until the answer is true. Raises `ClusterError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.3)


def succeeds(action: Callable[[], object]) -> bool:
    """Whether `action` ran without a `ClusterError`."""
    try:
        action()
    except ClusterError:
        return False
    return True
