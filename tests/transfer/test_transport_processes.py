"""Sender processes that die, freeze and return, and receivers that restart."""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import Failure, ReceiveReport, SendReport
from tandem_runtime.transfer.tcp import TcpReceiver
from transfer.ipc_rig import IpcRig, open_files
from transfer.rig import Rig, WatchedMemory, tcp_rig

MakeRig = Callable[..., Rig]
SLOTS = [(page, 1) for page in range(4)]
STALL_S = 1.0


class SenderProcess:
    def __init__(self, port: int, job_id: str, how: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "transfer.sender_process", str(port), job_id, json.dumps(SLOTS), *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def report(self) -> SendReport:
        assert self.process.stdout is not None
        return msgspec.json.decode(self.process.stdout.readline(), type=SendReport)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start_sender() -> Iterator[Callable[[Rig, str], SenderProcess]]:
    """Starts a sender process, opens a job from it to receiver rank 0 and waits until half of the pages have landed."""
    started: list[SenderProcess] = []

    def start(rig: Rig, job_id: str) -> SenderProcess:
        sender = SenderProcess(rig.receivers[0].port, job_id, rig.transports or rig.ipc_paths)
        started.append(sender)
        rig.open_receivers(job_id, SLOTS)
        sender.say("open")
        sender.say("send 0 2")
        for _ in range(2):
            rig.sinks[0].landings.get(timeout=20)
        return sender

    yield start
    for sender in started:
        sender.close()


StartSender = Callable[[Rig, str], SenderProcess]


def test_a_process_sends_a_job(make_timed_rig: MakeRig, start_sender: StartSender) -> None:
    rig = make_timed_rig()
    sender = start_sender(rig, "job")
    sender.say("send 2 2")
    sender.say("finish")
    assert rig.received.wait("job").ok
    assert sender.report().ok
    assert (rig.landing_zones[0][:4] == 0x55).all()


def test_kill_9_of_the_sender_fails_its_job_at_once(make_timed_rig: MakeRig, start_sender: StartSender) -> None:
    rig = make_timed_rig(stall_timeout_s=60)
    start_sender(rig, "job").signal(signal.SIGKILL)
    report = rig.received.wait("job")
    assert (report.error, report.pages) == (Failure.DISCONNECTED, 2)


def test_a_frozen_sender_stalls_its_job_only_and_its_late_bytes_go_nowhere(
    make_timed_rig: MakeRig, start_sender: StartSender
) -> None:
    rig = make_timed_rig(stall_timeout_s=STALL_S)
    sender = start_sender(rig, "frozen")
    sender.signal(signal.SIGSTOP)
    rig.open("other", [(8, 1)])
    rig.send("other", 0, [5])
    rig.finish("other")
    assert rig.received.wait("other").ok
    report = rig.received.wait("frozen")
    assert report.error is Failure.STALLED
    assert "sender rank 0 went silent" in report.detail

    zone = rig.landing_zones[0]
    zone[:4] = 0xEE
    sender.say("send 2 2")
    sender.signal(signal.SIGCONT)
    assert sender.report().error is Failure.STALLED
    assert (zone[:4] == 0xEE).all()


def test_a_sender_that_waits_for_its_next_chunk_is_not_stalled(make_timed_rig: MakeRig) -> None:
    rig = make_timed_rig(stall_timeout_s=STALL_S)
    rig.open("job", [(0, 1), (1, 1)])
    rig.send("job", 0, [0])
    assert rig.received.silent_for(2 * STALL_S)
    rig.send("job", 1, [1])
    rig.finish("job")
    assert rig.received.wait("job").ok
    assert rig.sent.wait("job").ok


def test_a_sender_that_never_connects_stalls_the_job(make_timed_rig: MakeRig) -> None:
    rig = make_timed_rig(stall_timeout_s=STALL_S)
    rig.open_receivers("job", [(0, 1)])
    report = rig.received.wait("job")
    assert (report.error, report.detail) == (Failure.STALLED, "not every sender rank connected in time")


def test_a_restarted_receiver_refuses_the_jobs_of_its_former_life(
    make_timed_rig: MakeRig, start_sender: StartSender
) -> None:
    rig = make_timed_rig()
    sender = start_sender(rig, "old")
    rig.receivers[0].stop()
    assert rig.received.wait("old").error is Failure.SHUTDOWN
    assert sender.report().error is Failure.SHUTDOWN

    zone = rig.landing_zones[0]
    zone[:] = 0xEE
    reports: queue.SimpleQueue[ReceiveReport] = queue.SimpleQueue()
    sink = WatchedMemory(PageMemory(memoryview(zone), rig.sink_layout, 0), memoryview(zone))
    reborn = TcpReceiver(sink, reports.put, host="127.0.0.1", port=rig.receivers[0].port)
    rig.open_senders("old", SLOTS)
    rig.send("old", 0, [0, 1, 2, 3])
    assert rig.sent.wait("old").error is Failure.REJECTED
    reborn.stop()
    assert reports.empty()
    assert (zone == 0xEE).all()


def test_every_address_of_a_name_is_tried(make_timed_rig: MakeRig) -> None:
    """`localhost` is ::1 first on many machines; the receiver listens on 127.0.0.1."""
    rig = make_timed_rig()
    rig.open_receivers("job", [(0, 1)])
    rig.open_senders("job", [(0, 1)], host="localhost")
    rig.send("job", 0, [0])
    rig.finish("job")
    assert rig.sent.wait("job").ok


def test_no_receiver_is_unreachable(make_timed_rig: MakeRig) -> None:
    rig = make_timed_rig()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    rig.open_senders("job", SLOTS, ports=[port])
    report = rig.sent.wait("job")
    assert report.error is Failure.UNREACHABLE
    assert "receiver rank 0 at 127.0.0.1: Connection refused" in report.detail


def test_a_receiver_that_never_answers_stalls_the_sender(make_timed_rig: MakeRig) -> None:
    rig = make_timed_rig(stall_timeout_s=STALL_S)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rig.open_senders("job", SLOTS, ports=[silent.getsockname()[1]])
        rig.send("job", 0, [0, 1, 2, 3])
        rig.finish("job")
        assert rig.sent.wait("job").error is Failure.STALLED


@pytest.mark.parametrize("build", [tcp_rig, IpcRig])
def test_transports_leave_no_thread_and_no_descriptor_behind(build: Callable[..., Rig]) -> None:
    gc.collect()  # of other tests
    threads, descriptors = set(threading.enumerate()), open_files()
    for _ in range(3):
        rig = build(sender_tp=2, receiver_tp=2)
        rig.open("done", [(0, 1)])
        rig.send("done", 0, [0])
        rig.finish("done")
        assert all(report.ok for report in rig.receive_reports("done"))
        rig.open("open", [(1, 1)])
        rig.stop()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive(), thread.name
    del rig
    gc.collect()
    assert open_files() == descriptors
