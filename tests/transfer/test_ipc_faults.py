"""Senders that lie about their memory, and what is left of those that end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from tandem_runtime.transfer import descriptors
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import Failure
from transfer.ipc_rig import IpcRig, hand_over, mapped
from transfer.raw_sharer import BLANK, PAGE, RawSharer, record

MakeRig = Callable[..., IpcRig]


def eventually(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("never came true")


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


REFUSALS = {
    "the receiver cannot copy": {"receiver_refuses": "copy"},
    "the receiver cannot hash": {"receiver_refuses": "checksum"},
    "the sender cannot hash": {"sender_refuses": "checksum"},
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_gpu_that_fails_is_no_peer_that_left(
    make_ipc_rig: MakeRig, refusal: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Symptom: `disconnected`, and nothing in the log. Cause: the driver's errors are `OSError`s, like a socket's."""
    rig = make_ipc_rig(gpu=True, **refusal)
    hand_over(rig, "job")
    report = rig.received.wait("job") if "receiver_refuses" in refusal else rig.sent.wait("job")
    assert report.error is Failure.DEVICE
    assert report.detail.endswith("CUDA_ERROR_ILLEGAL_ADDRESS")
    assert [record.levelname for record in caplog.records if "CUDA_ERROR_ILLEGAL_ADDRESS" in record.getMessage()] == [
        "ERROR"
    ]


def test_memory_that_cannot_be_unmapped_takes_no_report_along(
    make_ipc_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    """Symptom: a job whose sender had ended was never reported, and its pages stayed quarantined for good.

    Cause: the last of a sender's streams unmaps its memory when it ends, and an error of that went on to whoever was
    about to report.
    """
    rig = make_ipc_rig(gpu=True, receiver_refuses="unmap")
    rig.open("job", [(7, 1), (8, 1)])
    rig.send("job", 0, [5])
    rig.sinks[0].landings.get(timeout=20)
    rig.senders[0].stop()
    assert rig.received.wait("job").error is not None
    eventually(lambda: any("stays mapped: CUDA_ERROR" in record.getMessage() for record in caplog.records))
