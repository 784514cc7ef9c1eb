from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.engine_pods import Pod, pods


@pytest.fixture
def trio() -> Iterator[tuple[Pod, Pod]]:
    with pods(("prefill", "1", {}), ("decode", "2", {})) as (prefill, decode):
        yield prefill, decode
