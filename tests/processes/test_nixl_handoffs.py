"""Pages that decode pods read by NIXL give the answers of one process; a prefill pod without it is served over TCP."""

from __future__ import annotations

import pytest
from processes.mixed_transports import assert_answers_are_those_of_one_process
from support.serving import Fleet

pytestmark = pytest.mark.processes


async def test_answers_are_those_of_one_process_whoever_speaks_nixl(fleet: Fleet) -> None:
    pytest.importorskip("nixl_cu13", reason="the extra `nixl` is not installed")
    decode = await assert_answers_are_those_of_one_process(fleet, "nixl")
    assert decode.log().count("by NIXL") == 1, "the one prefill pod that has it"
