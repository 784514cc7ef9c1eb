"""Senders that break rules, on real sockets: their connection ends, their job (if proven theirs) fails by name, and
nobody else notices."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from tandem_runtime.transfer.protocol import Failure
from tandem_runtime.transfer.tcp import wire
from transfer.raw_sender import RawSender
from transfer.rig import Rig

MakeRig = Callable[..., Rig]
PAGE = 4 * 256
"""Bytes of a page of the rig's default shape."""


@pytest.fixture
def rig(make_tcp_rig: MakeRig) -> Rig:
    """With an honest job in flight, `honest`, that must not be affected."""
    rig = make_tcp_rig()
    assert rig.sink_layout.page_bytes == PAGE
    rig.open("honest", [(10, 1), (11, 1)])
    rig.send("honest", 0, [0])
    rig.sinks[0].landings.get(timeout=10)
    return rig


@pytest.fixture
def raw(rig: Rig) -> Iterator[RawSender]:
    raw = RawSender(rig.receivers[0].port)
    yield raw
    raw.close()


@pytest.fixture(autouse=True)
def honest_job_is_unaffected(rig: Rig) -> Iterator[None]:
    yield
    rig.send("honest", 1, [1])
    rig.finish("honest")
    assert rig.received.wait("honest").ok
    assert rig.sent.wait("honest").ok
    rig.assert_moved([(0, 10), (1, 11)])


STRANGERS: dict[str, bytes] = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "random": os.urandom(4096),
    "zeros": bytes(1000),
    "another version": struct.pack("!6sHI", b"TANDEM", wire.VERSION + 1, 10) + bytes(10),
    "huge hello": struct.pack("!6sHI", b"TANDEM", wire.VERSION, 1 << 31),
    "empty hello": struct.pack("!6sHI", b"TANDEM", wire.VERSION, 0),
    "no msgpack": struct.pack("!6sHI", b"TANDEM", wire.VERSION, 8) + b"\xff" * 8,
    "another struct": struct.pack("!6sHI", b"TANDEM", wire.VERSION, 4) + b"\x93\x01\x02\x03",
}


@pytest.mark.parametrize("garbage", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_is_shown_the_door_without_a_word(raw: RawSender, garbage: bytes) -> None:
    raw.sock.sendall(garbage)
    assert raw.read_to_end() == b""


def test_a_port_scan_disturbs_nobody(rig: Rig) -> None:
    for _ in range(300):
        RawSender(rig.receivers[0].port).close()


def test_half_a_hello_times_out(make_tcp_rig: MakeRig) -> None:
    rig = make_tcp_rig(stall_timeout_s=0.2)
    raw = RawSender(rig.receivers[0].port)
    raw.sock.sendall(b"TANDEM")
    assert raw.read_to_end() == b""
    raw.close()


def test_the_oldest_stranger_goes_when_there_are_too_many(rig: Rig) -> None:
    crowd = [RawSender(rig.receivers[0].port) for _ in range(300)]
    assert crowd[0].read_to_end() == b""
    for raw in crowd:
        raw.close()


def test_wrong_tokens_and_unknown_jobs_get_the_same_answer(rig: Rig) -> None:
    answers = []
    for job_id, token in [("honest", "guess"), ("honest", "ß"), ("nobody", "data-token")]:
        raw = RawSender(rig.receivers[0].port)
        raw.hello(job_id, rig.sink_layout, data_token=token)
        answers.append(wire.unpack_verdict(raw.read_to_end()))
        raw.close()
    assert answers == [wire.Verdict(Failure.REJECTED, "unknown job or wrong token")] * 3


@pytest.mark.parametrize(
    ("change", "failure"),
    [
        ({"layout": "0" * 32}, Failure.LAYOUT),
        ({"sender_tp": 2}, Failure.LAYOUT),
        ({"sender_rank": 1}, Failure.LAYOUT),
        ({"sender_rank": -1}, Failure.LAYOUT),
        ({"receiver_rank": 1}, Failure.LAYOUT),
    ],
)
def test_a_sender_of_the_job_that_does_not_fit_fails_it(
    rig: Rig, raw: RawSender, change: dict[str, object], failure: Failure
) -> None:
    rig.open_receivers("job", [(3, 1)])
    raw.hello("job", rig.sink_layout, **change)
    assert rig.received.wait("job").error is failure
    verdict = wire.unpack_verdict(raw.read_to_end())
    assert verdict is not None
    assert verdict.failure is failure


def repeat_a_slot(raw: RawSender) -> None:
    raw.fragment(0, 5, 0, b"a" * PAGE)
    raw.fragment(0, 5, 0, b"b" * PAGE)


def lie_about_the_checksum(raw: RawSender) -> None:
    raw.header(0, 5, 0, PAGE)
    raw.sock.sendall(b"a" * PAGE + bytes(8))


FRAMES: dict[str, tuple[Callable[[RawSender], None], Failure, str]] = {
    "slot out of range": (lambda raw: raw.header(2, 5, 0, PAGE), Failure.PROTOCOL, "slot 2 of 2"),
    "old generation": (lambda raw: raw.header(0, 4, 0, PAGE), Failure.GENERATION, "slot 0 is generation 5, sent 4"),
    "oversize": (lambda raw: raw.header(0, 5, 0, PAGE + 1), Failure.PROTOCOL, f"{PAGE + 1} bytes at 0"),
    "undersize": (lambda raw: raw.header(0, 5, 0, 0), Failure.PROTOCOL, "0 bytes at 0"),
    "shifted": (lambda raw: raw.header(0, 5, 1, PAGE), Failure.PROTOCOL, f"{PAGE} bytes at 1"),
    "huge": (lambda raw: raw.header(0, 5, 0, 2**64 - 1), Failure.PROTOCOL, f"{2**64 - 1} bytes"),
    "not a frame": (lambda raw: raw.sock.sendall(bytes(64)), Failure.PROTOCOL, "unknown kind"),
    "repeated": (repeat_a_slot, Failure.PROTOCOL, "slot 0 sent twice"),
    "wrong checksum": (lie_about_the_checksum, Failure.CHECKSUM, "slot 0: sent 0000000000000000"),
}


@pytest.mark.parametrize(("say", "failure", "detail"), FRAMES.values(), ids=FRAMES.keys())
def test_a_broken_frame_fails_its_job_by_name(
    rig: Rig, raw: RawSender, say: Callable[[RawSender], None], failure: Failure, detail: str
) -> None:
    rig.open_receivers("job", [(3, 5), (4, 5)])
    raw.hello("job", rig.sink_layout)
    say(raw)
    report = rig.received.wait("job")
    assert report.error is failure
    assert detail in report.detail
    raw.read_to_end()
    assert not rig.landing_zones[0][4].any()


def test_a_second_connection_of_a_rank_fails_the_job(rig: Rig, raw: RawSender) -> None:
    rig.open_receivers("job", [(3, 5)])
    raw.hello("job", rig.sink_layout)
    other = RawSender(rig.receivers[0].port)
    other.hello("job", rig.sink_layout)
    report = rig.received.wait("job")
    assert report.error is Failure.PROTOCOL
    assert "connected twice" in report.detail
    other.read_to_end()
    other.close()


def test_bytes_sent_after_close_never_reach_the_page(rig: Rig, raw: RawSender) -> None:
    """Symptom in the field: an aborted request's late write lands in pages that were already given to another one."""
    rig.open_receivers("job", [(3, 5), (4, 5)])
    raw.hello("job", rig.sink_layout)
    raw.fragment(0, 5, 0, b"a" * PAGE)
    raw.header(1, 5, 0, PAGE)
    raw.sock.sendall(b"b" * (PAGE // 2))
    assert rig.sinks[0].landings.get(timeout=10) == 3
    pump_on = threading.Event()

    def pump() -> None:
        with contextlib.suppress(OSError):
            raw.sock.sendall(b"c" * (PAGE // 2))
            pump_on.set()
            while True:
                raw.sock.sendall(b"c" * PAGE)
        pump_on.set()

    pumping = threading.Thread(target=pump)
    rig.receivers[0].close("job", "client left")
    pumping.start()
    pump_on.wait(10)
    assert rig.received.wait("job").error is Failure.CANCELLED
    zone = rig.landing_zones[0]
    zone[[3, 4]] = 0xEE
    rig.open("next owner", [(3, 6)])
    rig.send("next owner", 0, [7])
    rig.finish("next owner")
    assert rig.received.wait("next owner").ok
    pumping.join(10)
    assert not pumping.is_alive(), "the connection outlived its job"
    rig.assert_moved([(7, 3)])
    assert (zone[4] == 0xEE).all()


def test_a_corrupted_byte_on_the_way_fails_both_sides_by_checksum(rig: Rig) -> None:
    proxy = FlippingProxy(rig.receivers[0].port, flip_at=1000)
    rig.open("job", [(3, 5), (4, 5)], ports=[proxy.port])
    rig.send("job", 0, [0, 1])
    assert rig.received.wait("job").error is Failure.CHECKSUM
    assert rig.sent.wait("job").error is Failure.CHECKSUM
    proxy.close()


class FlippingProxy:
    """Forwards one connection and inverts the byte at `flip_at` of the sender's stream."""

    def __init__(self, port: int, flip_at: int) -> None:
        self._target = socket.create_connection(("127.0.0.1", port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._flip_at = flip_at
        self._threads = [threading.Thread(target=self._forward)]
        self._threads[0].start()

    def _forward(self) -> None:
        self._source, _ = self._listener.accept()
        back = threading.Thread(target=self._back)
        back.start()
        seen = 0
        with contextlib.suppress(OSError):
            while data := bytearray(self._source.recv(65536)):
                if seen <= self._flip_at < seen + len(data):
                    data[self._flip_at - seen] ^= 0xFF
                seen += len(data)
                self._target.sendall(data)
        back.join()

    def _back(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._target.recv(65536):
                self._source.sendall(data)
        self._source.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._threads[0].join()
        for sock in (self._target, self._source, self._listener):
            sock.close()
