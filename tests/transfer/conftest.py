from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tandem_runtime.transfer.local import LocalFabric
from tandem_runtime.transfer.memory import PageMemory
from transfer.rig import Rig, local_rig, staged, tcp_rig

MakeRig = Callable[..., Rig]


@pytest.fixture(params=["local", "tcp", "tcp staged"])
def make_rig(request: pytest.FixtureRequest) -> Iterator[MakeRig]:
    """Builds rigs of each transport and stops them."""
    rigs: list[Rig] = []
    fabric = LocalFabric()

    def make(**shape: int) -> Rig:
        if request.param == "local":
            rig = local_rig(fabric, **shape)
        else:
            rig = tcp_rig(memory=staged if request.param == "tcp staged" else PageMemory, **shape)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.stop()
    fabric.stop()


@pytest.fixture
def make_tcp_rig() -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(stall_timeout_s: float = 10.0, **shape: int) -> Rig:
        rigs.append(tcp_rig(stall_timeout_s, **shape))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.stop()
