"""Pages go through memory that both ends share, and over TCP where they do not or should not."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tandem_runtime.core.errors import StartupError
from tandem_runtime.transfer.ipc.host import HostImport
from tandem_runtime.transfer.ipc.reads import IpcReads
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import SendJob
from transfer.ipc_rig import IpcRig, hand_over, mapped
from transfer.raw_sharer import PAGE, RawSharer
from transfer.rig import TOKEN, layout

MakeRig = Callable[..., IpcRig]


def test_nothing_goes_over_tcp_where_memory_is_shared(make_ipc_rig: MakeRig) -> None:
    rig = make_ipc_rig()
    rig.open_receivers("job", [(7, 1)])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        job = SendJob(
            job_id="job",
            data_token=TOKEN,
            host="127.0.0.1",
            data_ports=[silent.getsockname()[1]],
            slots=[(7, 1)],
            ipc_paths=rig.ipc_paths,
        )
        rig.senders[0].open(job)
        rig.send("job", 0, [5])
        rig.finish("job")
        assert rig.received.wait("job").ok
    assert rig.received.wait("job").transports == ["ipc"]
    rig.assert_moved([(5, 7)])


UNREACHABLE = {
    "no path": lambda folder: [],
    "no such socket": lambda folder: [f"{folder}/nobody"],
    "a socket that nobody serves": lambda folder: [dead_socket(folder)],
    "too long a path": lambda folder: ["/" + "x" * 200],
    "no path at all": lambda folder: ["a\0b"],
}


def dead_socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{folder}/dead")
    return f"{folder}/dead"


@pytest.mark.parametrize("paths", UNREACHABLE.values(), ids=UNREACHABLE.keys())
def test_a_peer_that_is_not_on_this_machine_is_served_over_tcp(
    make_ipc_rig: MakeRig, paths: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    rig = make_ipc_rig()
    rig.ipc_paths = paths(tmp_path)
    hand_over(rig, "job")
    assert rig.received.wait("job").ok
    assert rig.received.wait("job").transports == ["tcp"]
    assert rig.sent.wait("job").ok
    rig.assert_moved([(5, 7)])


def test_memory_of_another_kind_is_served_over_tcp(make_ipc_rig: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    """As between a process on a GPU and one on the CPU; said once."""
    caplog.set_level("INFO")
    rig = make_ipc_rig(gpu=True, shared_by="host")
    for job in ("first", "second"):
        hand_over(rig, job)
        assert rig.received.wait(job).ok
        assert rig.sent.wait(job).ok
    said = [record.getMessage() for record in caplog.records if "over TCP" in record.getMessage()]
    assert said == [
        "pages for 127.0.0.1 go over TCP, not through shared memory: "
        "receiver rank 0: GPU-of-the-host cannot map the memory of host"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_socket_gets_nothing(make_ipc_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_ipc_rig()
    folder = Path("/tmp") / f"open-{secrets.token_hex(8)}"
    folder.mkdir()
    folder.chmod(0o777)
    script = (
        "import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        f"s.bind('{folder}/kv'); s.listen(); print(flush=True); "
        "print(s.accept()[0].recv(1), flush=True)"
    )
    squatter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert squatter.stdout is not None
        squatter.stdout.readline()
        rig.ipc_paths = [f"{folder}/kv"]
        hand_over(rig, "job")
        assert rig.received.wait("job").ok
        assert squatter.stdout.readline() == "b''\n"
    finally:
        squatter.kill()
        squatter.communicate()
        (folder / "kv").unlink()
        folder.rmdir()


def unsealed() -> int:
    file = os.memfd_create("grows-and-shrinks")
    os.ftruncate(file, 4 * PAGE)
    return file


UNMAPPABLE: dict[str, dict[str, Any]] = {
    "no descriptor": {"memory": -1},
    "no memory": {"memory": 0},
    "memory that may shrink": {"memory": unsealed},
    "less than it says": {"num_bytes": 5 * PAGE},
    "none": {"num_bytes": 0},
    "another kind": {"kind": "GPU-1"},
    "a life line that is none": {"life_line": unsealed},
}


SIZES = (0, -1, (1 << 30) + 1, 2**63)


@pytest.mark.parametrize("num_bytes", SIZES)
def test_more_memory_than_any_gpu_has_is_not_mapped(make_ipc_rig: MakeRig, num_bytes: int) -> None:
    rig = make_ipc_rig(gpu=True)
    rig.open_receivers("job", [(7, 1)])
    raw = RawSharer(rig.ipc_paths[0])
    raw.share("job", rig.source_layout, kind="GPU-of-the-host", num_bytes=num_bytes)
    assert f"no GPU here has {num_bytes} bytes".encode() in raw.read_to_end()
    raw.close()


@pytest.mark.parametrize("offer", UNMAPPABLE.values(), ids=UNMAPPABLE.keys())
def test_memory_that_must_not_be_mapped_costs_the_job_nothing(make_ipc_rig: MakeRig, offer: dict[str, Any]) -> None:
    rig = make_ipc_rig()
    before = mapped()
    rig.open_receivers("job", [(7, 1)])
    raw = RawSharer(rig.ipc_paths[0])
    offered = {key: value() if callable(value) else value for key, value in offer.items()}
    raw.share("job", rig.source_layout, **offered)
    assert b"unshared" in raw.read_to_end()
    raw.close()
    assert mapped() == before
    rig.open_senders("job", [(7, 1)])
    rig.send("job", 0, [5])
    assert rig.received.wait("job").ok
    rig.assert_moved([(5, 7)])


def test_a_folder_that_no_socket_can_be_in_is_said() -> None:
    cache = memoryview(bytearray(PAGE))
    with pytest.raises(StartupError, match="AF_UNIX path too long; set TMPDIR"):
        IpcReads(HostImport(PageMemory(cache, layout(), 0)), "/" + "x" * 200)
