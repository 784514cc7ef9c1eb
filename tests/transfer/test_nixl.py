"""Reads that come late, senders that lie about what they export, and peers that do not speak NIXL."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import xxhash
from tandem_runtime.transfer import descriptors
from tandem_runtime.transfer.ledger import Exported, FragmentHeader
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import NIXL, Failure
from transfer.raw_sender import RawSender
from transfer.rig import NixlAgents, Rig, tcp_rig

PAGE = 4 * 256
"""Bytes of a page of the rig's default shape."""
BLANK = xxhash.xxh3_64_intdigest(b"\x55" * PAGE)


@dataclass
class Exporter:
    process: subprocess.Popen[str]
    exported: Exported
    address: int

    def record(self, index: int, *, checksum: int = BLANK, address: int | None = None) -> bytes:
        header = FragmentHeader(index, 1, 0, PAGE)
        return descriptors.pack(descriptors.Descriptor(header, self.address if address is None else address, checksum))


def exporter() -> Exporter:
    process = subprocess.Popen(
        [sys.executable, "-m", "transfer.exporting_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    agent, address = json.loads(process.stdout.readline())
    return Exporter(process, Exported(base64.b64decode(agent), "DRAM", 0), address)


@pytest.fixture
def start_exporter() -> Iterator[Callable[[], Exporter]]:
    started: list[Exporter] = []

    def start() -> Exporter:
        started.append(exporter())
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture(scope="module")
def peer(nixl_agents: NixlAgents) -> Iterator[Exporter]:
    """For tests that leave it alive; processes take a while to start."""
    started = exporter()
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture
def make_nixl_rig(nixl_agents: NixlAgents) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(agents: NixlAgents = nixl_agents, stall_timeout_s: float = 10.0, **options: int) -> Rig:
        rigs.append(agents.rig(stall_timeout_s, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.stop()


@pytest.fixture
def agents_over_tcp(nixl_agents: NixlAgents, monkeypatch: pytest.MonkeyPatch) -> NixlAgents:
    """UCX emulates reads over TCP, where the peer's process has to take part: what a frozen peer does not."""
    monkeypatch.setenv("UCX_TLS", "tcp,self")
    return NixlAgents()


def hand_over(rig: Rig, job_id: str) -> None:
    """Page 5 to page 7."""
    rig.open(job_id, [(7, 1)])
    rig.send(job_id, 0, [5])
    rig.finish(job_id)


@pytest.mark.parametrize("fate", [signal.SIGCONT, signal.SIGKILL], ids=["thaws", "is killed"])
def test_bytes_of_a_frozen_peer_land_in_no_page(
    agents_over_tcp: NixlAgents,
    make_nixl_rig: Callable[..., Rig],
    start_exporter: Callable[[], Exporter],
    fate: signal.Signals,
) -> None:
    """UCX wrote 64 MB into the memory of a read whose handle was released and whose peer was removed, once the peer's
    process went on. The only slot is in that read; that it serves the next job shows that the read has ended."""
    rig = make_nixl_rig(agents_over_tcp, stall_timeout_s=1.0, max_slots=1)
    peer = start_exporter()
    rig.open_receivers("frozen", [(3, 1)])
    raw = RawSender(rig.receivers[0].port)
    peer.process.send_signal(signal.SIGSTOP)
    raw.hello("frozen", rig.source_layout, exported=peer.exported)
    raw.sock.sendall(peer.record(0))
    report = rig.received.wait("frozen")
    assert (report.error, report.detail) == (Failure.STALLED, "sender rank 0 has pages that cannot be read")
    raw.close()
    hand_over(rig, "too early")
    assert not rig.received.wait("too early").ok

    zone = rig.landing_zones[0]
    zone[:] = 0xEE
    peer.process.send_signal(fate)
    for attempt in range(50):  # the slot comes back when the read has ended; until then jobs without one stall
        hand_over(rig, f"next {attempt}")
        if rig.received.wait(f"next {attempt}").ok:
            break
    rig.assert_moved([(5, 7)])
    assert (zone[3] == 0xEE).all()


def test_a_dead_peer_fails_its_job_at_once(
    make_nixl_rig: Callable[..., Rig], start_exporter: Callable[[], Exporter]
) -> None:
    rig = make_nixl_rig()
    peer = start_exporter()
    rig.open_receivers("job", [(3, 1), (4, 1)])
    raw = RawSender(rig.receivers[0].port)
    raw.hello("job", rig.source_layout, exported=peer.exported)
    raw.sock.sendall(peer.record(0))
    assert rig.sinks[0].landings.get(timeout=20) == 3
    peer.process.kill()
    peer.process.wait()
    raw.sock.sendall(peer.record(1))
    assert rig.received.wait("job").error is Failure.DISCONNECTED
    assert b"disconnected" in raw.read_to_end()
    raw.close()


LIES: dict[str, tuple[Callable[[Exporter], bytes], Failure]] = {
    "bytes that changed": (lambda peer: peer.record(0, checksum=BLANK + 1), Failure.CHECKSUM),
    "outside of what is exported": (lambda peer: peer.record(0, address=peer.address - PAGE), Failure.PROTOCOL),
    "across its end": (lambda peer: peer.record(0, address=peer.address + 4 * PAGE - 1), Failure.PROTOCOL),
    "address zero": (lambda peer: peer.record(0, address=0), Failure.PROTOCOL),
    "a slot twice": (lambda peer: peer.record(0) + peer.record(0), Failure.PROTOCOL),
    "a slot too many": (lambda peer: peer.record(2), Failure.PROTOCOL),
    "no record": (lambda _: bytes(descriptors.RECORD_BYTES), Failure.PROTOCOL),
}


@pytest.mark.parametrize(("lie", "failure"), LIES.values(), ids=LIES.keys())
def test_a_lying_sender_fails_its_job_only(
    make_nixl_rig: Callable[..., Rig],
    peer: Exporter,
    lie: Callable[[Exporter], bytes],
    failure: Failure,
) -> None:
    rig = make_nixl_rig()
    rig.open("honest", [(10, 1), (11, 1)])
    rig.send("honest", 0, [0])
    rig.open_receivers("job", [(3, 1), (4, 1)])
    raw = RawSender(rig.receivers[0].port)
    raw.hello("job", rig.source_layout, exported=peer.exported)
    raw.sock.sendall(lie(peer))
    assert rig.received.wait("job").error is failure
    raw.close()
    rig.send("honest", 1, [1])
    rig.finish("honest")
    assert rig.received.wait("honest").ok
    rig.assert_moved([(0, 10), (1, 11)])


@pytest.mark.parametrize("metadata", [b"", b"nixl", os.urandom(512)], ids=["none", "short", "random"])
def test_metadata_that_is_none_is_refused(make_nixl_rig: Callable[..., Rig], metadata: bytes) -> None:
    rig = make_nixl_rig()
    rig.open_receivers("job", [(3, 1)])
    raw = RawSender(rig.receivers[0].port)
    raw.hello("job", rig.source_layout, exported=Exported(metadata, "DRAM", 0))
    report = rig.received.wait("job")
    assert (report.error, "metadata" in report.detail) == (Failure.PROTOCOL, True), report
    raw.close()


def test_a_nixl_sender_falls_back_to_tcp(nixl_agents: NixlAgents) -> None:
    rig = nixl_agents.rig()
    rig.transports = []  # as in the grant of a pod without NIXL
    hand_over(rig, "job")
    assert rig.received.wait("job").ok
    rig.assert_moved([(5, 7)])
    rig.stop()


def test_a_tcp_sender_ignores_that_the_receiver_reads() -> None:
    rig = tcp_rig()
    rig.transports = [NIXL]
    hand_over(rig, "job")
    assert rig.received.wait("job").ok
    rig.stop()


def test_a_receiver_without_nixl_refuses_exports() -> None:
    rig = tcp_rig()
    rig.open_receivers("job", [(3, 1)])
    raw = RawSender(rig.receivers[0].port)
    raw.hello("job", rig.source_layout, exported=Exported(b"x", "DRAM", 0))
    assert rig.received.wait("job").error is Failure.PROTOCOL
    raw.close()
    rig.stop()


class SlowSink(PageMemory):
    """A device that takes a while for each page."""

    def landed(self, page_id: int, heads: range) -> None:
        time.sleep(0.25)


def test_a_receiver_that_is_still_reading_is_not_stalled(make_nixl_rig: Callable[..., Rig]) -> None:
    rig = make_nixl_rig(stall_timeout_s=2.0, memory=SlowSink)
    rig.open("job", [(page, 1) for page in range(12)])
    rig.send("job", 0, list(range(12)))
    rig.finish("job")
    assert rig.received.wait("job").ok
    assert rig.sent.wait("job").ok


def refusal(code: str, **env: str) -> str:
    """What making an agent says in a process of its own."""
    script = f"{code}\nfrom tandem_runtime.transfer.nixl.agent import NixlAgent\nNixlAgent()"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | env,
    )
    assert ended.returncode == 1
    return ended.stderr.strip().splitlines()[-1]


def test_a_missing_extra_is_named() -> None:
    said = refusal("import sys; sys.modules['nixl_cu13'] = None")
    assert "StartupError: --kv-transport nixl needs the extra: pip install 'tandem-serving[nixl]'" in said


def test_no_usable_fabric_is_named(nixl_agents: NixlAgents) -> None:
    assert "StartupError: --kv-transport nixl: UCX finds no usable fabric here" in refusal("", UCX_TLS="posix")
