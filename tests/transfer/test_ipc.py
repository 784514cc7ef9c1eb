"""Memory that cannot or should not be mapped, senders that lie about it, and what is left of those that end."""

from __future__ import annotations

import mmap
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer import descriptors
from tandem_runtime.transfer.ipc import doors
from tandem_runtime.transfer.ipc.checksum import WordSums
from tandem_runtime.transfer.ipc.host import HostImport, SharedMemory
from tandem_runtime.transfer.ipc.reads import IpcReads
from tandem_runtime.transfer.ledger import FragmentHeader, Offer
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import Failure, SendJob
from transfer.ipc_rig import IpcRig
from transfer.raw_sender import RawSender
from transfer.rig import TOKEN, Rig, layout

PAGE = 4 * 256
"""Bytes of a page of the rig's default shape."""
BLANK = xxhash.xxh3_64_intdigest(b"\x55" * PAGE)
MakeRig = Callable[..., IpcRig]


@pytest.fixture
def make_ipc_rig() -> Iterator[MakeRig]:
    rigs: list[IpcRig] = []

    def make(stall_timeout_s: float = 10.0, **shape: Any) -> IpcRig:
        rigs.append(IpcRig(stall_timeout_s, **shape))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.stop()


def hand_over(rig: Rig, job_id: str) -> None:
    """Page 5 to page 7."""
    rig.open(job_id, [(7, 1)])
    rig.send(job_id, 0, [5])
    rig.finish(job_id)


class RawSharer(RawSender):
    """Shares four pages of 0x55."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.memory = SharedMemory(4 * PAGE)
        self.memory.view[:] = b"\x55" * (4 * PAGE)
        self.life_line = doors.LifeLine()

    def share(
        self, job_id: str, shape: KVLayout, *, memory: int | None = None, life_line: int | None = None, **changes: Any
    ) -> None:
        """The hello with its descriptors, or with others; a negative `memory`: with none. `changes` of the offer."""
        offer = Offer(**({"kind": "host", "id": secrets.token_bytes(16), "num_bytes": 4 * PAGE} | changes))
        memory = self.memory.file if memory is None else memory
        life_line = self.life_line.far_end.fileno() if life_line is None else life_line
        files = [memory, life_line] if memory >= 0 else []
        self.sock.sendmsg([self.greeting(job_id, shape, offer=offer)], doors.with_files(files))

    def close(self) -> None:
        super().close()
        self.life_line.close()


def record(index: int, *, address: int = 0, checksum: int = BLANK) -> bytes:
    return descriptors.pack(descriptors.Descriptor(FragmentHeader(index, 1, 0, PAGE), address, checksum))


def mapped() -> int:
    """Mappings of shared caches that this process may not write: those of other processes."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("memfd:tandem-kv" in line and " r--s " in line for line in lines)


def eventually(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("never came true")


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


LIES: dict[str, tuple[bytes, Failure]] = {
    "bytes that changed": (record(0, checksum=BLANK + 1), Failure.CHECKSUM),
    "across the end of the memory": (record(0, address=3 * PAGE + 1), Failure.PROTOCOL),
    "far outside of it": (record(0, address=2**63), Failure.PROTOCOL),
    "a slot twice": (record(0) + record(0), Failure.PROTOCOL),
    "a slot too many": (record(2), Failure.PROTOCOL),
    "no record": (bytes(descriptors.RECORD_BYTES), Failure.PROTOCOL),
}


@pytest.mark.parametrize(("lie", "failure"), LIES.values(), ids=LIES.keys())
def test_a_lying_sender_fails_its_job_only(make_ipc_rig: MakeRig, lie: bytes, failure: Failure) -> None:
    rig = make_ipc_rig()
    rig.open("honest", [(10, 1), (11, 1)])
    rig.send("honest", 0, [0])
    rig.open_receivers("job", [(3, 1), (4, 1)])
    raw = RawSharer(rig.ipc_paths[0])
    raw.share("job", rig.source_layout)
    raw.sock.sendall(lie)
    assert rig.received.wait("job").error is failure
    raw.close()
    rig.send("honest", 1, [1])
    rig.finish("honest")
    assert rig.received.wait("honest").ok
    rig.assert_moved([(0, 10), (1, 11)])


class HeldSink(PageMemory):
    """Holds the receiver's thread up before each copy."""

    begun: threading.Event
    go_on: threading.Event

    def incoming(self, page_id: int, heads: range) -> memoryview:
        self.begun.set()
        assert self.go_on.wait(20)
        return super().incoming(page_id, heads)


def test_a_sender_killed_in_the_middle_of_a_copy_leaves_its_bytes_and_then_nothing(make_ipc_rig: MakeRig) -> None:
    HeldSink.begun, HeldSink.go_on = threading.Event(), threading.Event()
    rig = make_ipc_rig(memory=HeldSink)
    rig.open_receivers("job", [(3, 1), (4, 1)])
    before = mapped()
    sender = subprocess.Popen(
        [sys.executable, "-m", "transfer.sender_process", "0", "job", "[[3, 1], [4, 1]]", rig.ipc_paths[0]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert sender.stdout is not None
        assert sender.stdin is not None
        sender.stdout.readline()
        sender.stdin.write("open\nsend 0 1\n")
        sender.stdin.flush()
        assert HeldSink.begun.wait(20)
        assert mapped() == before + 1
        sender.send_signal(signal.SIGKILL)
        sender.wait()
        HeldSink.go_on.set()
        report = rig.received.wait("job")
        assert (report.error, report.pages) == (Failure.DISCONNECTED, 1)
        assert (rig.landing_zones[0][3] == 0x55).all()
        eventually(lambda: mapped() == before)
    finally:
        sender.kill()
        sender.communicate()


def test_memory_is_kept_between_jobs_and_given_back_with_the_sender(make_ipc_rig: MakeRig) -> None:
    rig = make_ipc_rig()
    before = mapped()
    for job in ("first", "second"):
        hand_over(rig, job)
        assert rig.received.wait(job).ok
        assert mapped() == before + 1
    rig.senders[0].stop()
    eventually(lambda: mapped() == before)


class SlowSink(PageMemory):
    """A device that takes a while for each page."""

    def landed(self, page_id: int, heads: range) -> None:
        threading.Event().wait(0.25)


def test_a_receiver_that_is_still_copying_is_not_stalled(make_ipc_rig: MakeRig) -> None:
    rig = make_ipc_rig(stall_timeout_s=2.0, memory=SlowSink, head_dim=8192, pages=12)
    rig.open("job", [(page, 1) for page in range(12)])
    rig.send("job", 0, list(range(12)))
    rig.finish("job")
    assert rig.received.wait("job").ok
    assert rig.sent.wait("job").ok


def test_shared_memory_cannot_be_written_nor_resized_by_those_who_get_it() -> None:
    memory = SharedMemory(PAGE)
    with pytest.raises(PermissionError):
        mmap.mmap(memory.file, PAGE)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.file, 0)
    memory.view[0] = 7
    assert mmap.mmap(memory.file, PAGE, prot=mmap.PROT_READ)[0] == 7


def test_the_checksum_of_devices_sees_changed_and_exchanged_words() -> None:
    shape = layout()
    sums = WordSums(shape, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    page_B = torch.randint(0, 256, (shape.page_bytes,), dtype=torch.uint8, generator=generator)
    right = sums(page_B)
    words_W, weights_W = page_B.view(torch.int64).tolist(), sums._weights_W.tolist()
    assert right == sum(word * weight for word, weight in zip(words_W, weights_W, strict=True)) % 2**64
    assert sums(page_B[: shape.head_bytes]) != right
    for byte in (0, 8, shape.page_bytes - 1):
        changed_B = page_B.clone()
        changed_B[byte] ^= 1
        assert sums(changed_B) != right
    for one, other in ((0, 1), (3, 70)):
        exchanged_W = page_B.view(torch.int64).clone()
        exchanged_W[[one, other]] = exchanged_W[[other, one]]
        assert sums(exchanged_W.view(torch.uint8)) != right


def test_pages_that_no_words_fill_are_named() -> None:
    odd = KVLayout(num_layers=1, num_kv_heads=1, head_dim=1, page_size=1, dtype="float16")
    with pytest.raises(StartupError, match="--kv-transport ipc: a head's part of a page has 4 bytes"):
        WordSums(odd, torch.device("cpu"))
