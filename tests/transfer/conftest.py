from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tandem_runtime.transfer.local import LocalFabric
from tandem_runtime.transfer.memory import PageMemory
from transfer.ipc_rig import IpcRig
from transfer.rig import NixlAgents, Rig, local_rig, staged, tcp_rig

MakeRig = Callable[..., Rig]


@pytest.fixture(scope="session")
def nixl_agents() -> NixlAgents:
    pytest.importorskip("nixl_cu13", reason="the extra `nixl` is not installed")
    return NixlAgents()


@pytest.fixture(params=["local", "tcp", "tcp staged", "nixl", "nixl staged", "ipc", "ipc staged", "ipc of a device"])
def make_rig(request: pytest.FixtureRequest) -> Iterator[MakeRig]:
    """Builds rigs of each transport and stops them."""
    rigs: list[Rig] = []
    fabric = LocalFabric()
    agents: NixlAgents | None = request.getfixturevalue("nixl_agents") if "nixl" in request.param else None

    def make(**shape: int) -> Rig:
        if request.param == "local":
            rig = local_rig(fabric, **shape)
        elif request.param.startswith("ipc"):
            memory = staged if request.param == "ipc staged" else PageMemory
            rig = IpcRig(gpu=request.param == "ipc of a device", memory=memory, **shape)
        elif agents:
            rig = agents.rig(memory=staged if request.param == "nixl staged" else PageMemory, **shape)
        else:
            rig = tcp_rig(memory=staged if request.param == "tcp staged" else PageMemory, **shape)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        rig.stop()
    fabric.stop()


@pytest.fixture(params=["tcp", "nixl", "ipc"])
def make_timed_rig(request: pytest.FixtureRequest) -> Iterator[MakeRig]:
    """Rigs between whose ends are sockets."""
    rigs: list[Rig] = []
    build: Callable[..., Rig]
    if request.param == "nixl":
        build = request.getfixturevalue("nixl_agents").rig
    else:
        build = tcp_rig if request.param == "tcp" else IpcRig

    def make(stall_timeout_s: float = 10.0, **shape: int) -> Rig:
        rigs.append(build(stall_timeout_s, **shape))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.stop()


@pytest.fixture
def make_ipc_rig() -> Iterator[Callable[..., IpcRig]]:
    rigs: list[IpcRig] = []

    def make(stall_timeout_s: float = 10.0, **shape: Any) -> IpcRig:
        rigs.append(IpcRig(stall_timeout_s, **shape))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.stop()


@pytest.fixture
def make_tcp_rig() -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(stall_timeout_s: float = 10.0, **shape: int) -> Rig:
        rigs.append(tcp_rig(stall_timeout_s, **shape))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.stop()
