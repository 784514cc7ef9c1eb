"""What every transport promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tandem_runtime.core.errors import HandoffError
from tandem_runtime.transfer.protocol import Failure, ReceiveJob, SendJob
from transfer.rig import Rig

MakeRig = Callable[..., Rig]

TP_PAIRS = [
    (4, 1, 1),
    (4, 1, 2),
    (4, 2, 1),
    (4, 2, 4),
    (4, 4, 2),
    (2, 4, 1),
    (2, 4, 2),
    (2, 1, 4),
    (2, 4, 4),
    (2, 8, 4),
]


@pytest.mark.parametrize(("heads", "sender_tp", "receiver_tp"), TP_PAIRS)
def test_pages_arrive_whole_under_any_tensor_parallelism(
    make_rig: MakeRig, heads: int, sender_tp: int, receiver_tp: int
) -> None:
    rig = make_rig(heads=heads, sender_tp=sender_tp, receiver_tp=receiver_tp)
    rig.open("job", [(7, 3), (2, 9), (5, 1)])
    rig.send("job", 0, [1, 0, 11])
    rig.finish("job")
    for rank, report in enumerate(rig.receive_reports("job")):
        assert report.ok, report
        assert (report.pages, report.bytes) == (3, 3 * rig.sink_layout.page_bytes), rank
    assert all(report.ok for report in rig.send_reports("job"))
    rig.assert_moved([(1, 7), (0, 2), (11, 5)])
    rig.assert_zero([0, 1, 3, 4, 6, 8, 9, 10, 11])


def test_a_chunk_lands_before_the_next_is_queued(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open("job", [(page, 1) for page in range(6)])
    for first in (0, 2, 4):
        rig.send("job", first, [first, first + 1])
        assert {rig.sinks[0].landings.get(timeout=10) for _ in range(2)} == {first, first + 1}
    assert rig.received.wait("job").ok
    rig.finish("job")
    assert rig.sent.wait("job").ok


def test_jobs_interleave(make_rig: MakeRig) -> None:
    rig = make_rig(sender_tp=2, receiver_tp=1)
    rig.open("a", [(page, 1) for page in range(4)])
    rig.open("b", [(page, 2) for page in range(4, 8)])
    for index in range(4):
        rig.send("a", index, [index])
        rig.send("b", index, [index + 4])
    for job in "ab":
        rig.finish(job)
        assert all(report.ok for report in rig.receive_reports(job) + rig.send_reports(job))
    rig.assert_moved([(page, page) for page in range(8)])


def test_pages_may_be_queued_out_of_order(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open("job", [(0, 1), (1, 1), (2, 1)])
    rig.send("job", 2, [2])
    rig.send("job", 0, [0, 1])
    rig.finish("job")
    assert rig.received.wait("job").ok
    rig.assert_moved([(0, 0), (1, 1), (2, 2)])


def test_a_job_without_pages_is_done_at_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open("job", [])
    rig.finish("job")
    assert rig.received.wait("job").ok
    assert rig.sent.wait("job").ok


def test_receiver_close_ends_both_sides(make_rig: MakeRig) -> None:
    rig = make_rig(sender_tp=1, receiver_tp=2)
    rig.open("job", [(0, 1), (1, 1)])
    rig.send("job", 0, [0])
    for sink in rig.sinks:
        sink.landings.get(timeout=10)
    rig.receivers[0].close("job", "client left")
    report = rig.received.wait("job", 0)
    assert (report.ok, report.error, report.detail) == (False, Failure.CANCELLED, "client left")
    assert rig.sent.wait("job").error is Failure.CANCELLED
    assert rig.received.wait("job", 1).error is Failure.DISCONNECTED


def test_sender_abort_ends_both_sides(make_rig: MakeRig) -> None:
    rig = make_rig(sender_tp=2, receiver_tp=1)
    rig.open("job", [(0, 1), (1, 1)])
    rig.send("job", 0, [0])
    for _ in range(2):
        rig.sinks[0].landings.get(timeout=10)
    rig.senders[1].abort("job", "lease expired")
    assert rig.sent.wait("job", 1).error is Failure.CANCELLED
    report = rig.received.wait("job")
    assert report.error is Failure.DISCONNECTED
    assert "rank 1" in report.detail
    assert report.pages == 1
    assert rig.sent.wait("job", 0).error is Failure.DISCONNECTED


def test_a_stale_generation_is_refused_before_a_byte_is_written(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open_receivers("job", [(3, 8)])
    rig.open_senders("job", [(3, 7)])
    rig.send("job", 0, [0])
    assert rig.received.wait("job").error is Failure.GENERATION
    assert rig.sent.wait("job").error is Failure.GENERATION
    rig.assert_zero([3])


def test_an_unknown_job_is_rejected(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open_senders("nobody", [(0, 1)])
    assert rig.sent.wait("nobody").error is Failure.REJECTED


def test_a_wrong_token_is_rejected_and_leaves_the_job_alone(make_rig: MakeRig) -> None:
    rig = make_rig(receiver_tp=1)
    rig.open_receivers("job", [(0, 1)])
    ports = [rig.receivers[0].port]
    guess = SendJob(
        job_id="job",
        data_token="guess",
        host="127.0.0.1",
        data_ports=ports,
        slots=[(0, 1)],
        transports=rig.transports,
        ipc_paths=rig.ipc_paths,
    )
    rig.senders[0].open(guess)
    assert rig.sent.wait("job").error is Failure.REJECTED
    rig.sent.seen.clear()
    rig.open_senders("job", [(0, 1)])
    rig.send("job", 0, [5])
    assert rig.received.wait("job").ok
    rig.assert_moved([(5, 0)])


def test_another_tensor_parallelism_than_announced_is_refused(make_rig: MakeRig) -> None:
    rig = make_rig(sender_tp=2)
    rig.receivers[0].open(ReceiveJob(job_id="job", data_token="data-token", sender_tp=4, slots=[(0, 1)]))
    rig.open_senders("job", [(0, 1)])
    assert rig.received.wait("job").error is Failure.LAYOUT


@pytest.mark.parametrize("sender_tp", [0, 3])
def test_an_impossible_tensor_parallelism_is_a_named_error(make_rig: MakeRig, sender_tp: int) -> None:
    rig = make_rig(heads=4)
    with pytest.raises(HandoffError, match=f"4 KV heads cannot be sharded over {sender_tp} ranks"):
        rig.receivers[0].open(ReceiveJob(job_id="job", data_token="data-token", sender_tp=sender_tp, slots=[(0, 1)]))


def test_finishing_early_fails_the_job(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open("job", [(0, 1), (1, 1)])
    rig.send("job", 0, [0])
    rig.sinks[0].landings.get(timeout=10)
    rig.finish("job")
    assert rig.sent.wait("job").error is Failure.PROTOCOL
    assert not rig.received.wait("job").ok


def test_pages_beyond_the_slots_fail_the_job(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open("job", [(0, 1), (1, 1)])
    rig.send("job", 0, [0])
    rig.sinks[0].landings.get(timeout=10)
    rig.send("job", 1, [1, 2])
    assert rig.sent.wait("job").error is Failure.PROTOCOL
    assert not rig.received.wait("job").ok


def test_stop_reports_open_jobs(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.open_receivers("in", [(0, 1)])
    rig.open("both", [(1, 1)])
    rig.stop()
    assert {job: report.error for (job, _), report in rig.received.seen.items()}["in"] is Failure.SHUTDOWN
    assert rig.sent.wait("both").error is Failure.SHUTDOWN
    assert rig.received.wait("both").ok is False


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 3)),
        st.tuples(st.just("close"), st.integers(0, 1)),
        st.tuples(st.just("abort"), st.integers(0, 1)),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_every_job_is_reported_once_and_a_reported_page_is_never_written_again(
    make_rig: MakeRig, actions: list[tuple[str, int]]
) -> None:
    """Aborts from either side at any point. The receiver's pages go to a new owner as soon as the job is reported."""
    rig = make_rig(sender_tp=2, receiver_tp=2, head_dim=64)
    pages = 8
    rig.open("job", [(page, 1) for page in range(pages)])
    queued = 0
    for action, argument in actions:
        if action == "send":
            batch = list(range(queued, min(pages, queued + argument)))
            rig.send("job", queued, batch)
            queued += len(batch)
        elif action == "close":
            rig.receivers[argument].close("job", "random")
        else:
            rig.senders[argument].abort("job", "random")
    if queued < pages or any(action != "send" for action, _ in actions):
        for receiver in rig.receivers:  # as the control plane would
            receiver.close("job", "unfinished")
    for rank, zone in enumerate(rig.landing_zones):
        rig.received.wait("job", rank)
        zone[:] = 0xEE
    if queued == pages:
        rig.finish("job")
    else:
        rig.send("job", queued, list(range(queued, pages)))
        rig.finish("job")
    rig.send_reports("job")
    rig.stop()
    assert len(rig.received.seen) == len(rig.sent.seen) == 2
    assert all((zone == 0xEE).all() for zone in rig.landing_zones)
