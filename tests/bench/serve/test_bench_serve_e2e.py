"""`tandem bench serve` against fake servers on real sockets, from argv to exit status, tables and files."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from bench.serve.fake_openai import FakeOpenAI, count_tokens, serving
from tandem_runtime.bench.main import run

Start = Callable[[FakeOpenAI], Any]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start_one(fake: FakeOpenAI) -> FakeOpenAI:
            return await stack.enter_async_context(serving(fake))

        yield start_one


async def bench(fake: FakeOpenAI, *argv: str) -> int:
    """Runs the command on a thread of its own: it brings its own event loop."""
    return await asyncio.to_thread(run, ["serve", f"--base-url={fake.url}", *argv])


async def test_counts_lengths_and_concurrency_are_as_asked(start: Start, tmp_path: Path) -> None:
    fake = await start(FakeOpenAI(delay=0.001))
    out = tmp_path / "out.json"
    status = await bench(fake, "--workload=40:6", "--concurrency=3", "--num-prompts=10", "--warmup=2", f"--json={out}")
    assert status == 0
    assert len(fake.requests) == 2 + 10
    assert all(len(body["prompt"]) == 40 and body["max_tokens"] == 6 for body in fake.requests)
    assert all(body["ignore_eos"] is True and body["model"] == "fake-model" for body in fake.requests)
    assert fake.most_in_flight == 3
    (level,) = json.loads(out.read_bytes())["levels"]
    assert level["summary"]["completed"] == 10
    assert level["summary"]["output_tokens"] == 60
    assert level["summary"]["input_tokens"] == 400
    assert [r["index"] for r in level["requests"]] == list(range(10))
    for record in level["requests"]:
        times = [record["start"], *record["chunk_times"], record["end"]]
        assert times == sorted(times)
        assert len(record["chunk_times"]) == 6


async def test_every_prompt_is_fresh_within_and_between_levels(start: Start) -> None:
    fake = await start(FakeOpenAI())
    assert await bench(fake, "--workload=32:2", "--concurrency=1,4", "--repeat=2", "--seed=3") == 0
    beginnings = {tuple(body["prompt"][:8]) for body in fake.requests}
    assert len(beginnings) == len(fake.requests) == 1 + 2 * (4 + 16)


async def test_shared_prefix_is_shared_and_the_rest_is_not(start: Start) -> None:
    fake = await start(FakeOpenAI())
    assert await bench(fake, "--workload=32:2", "--concurrency=2", "--shared-prefix-len=20") == 0
    prompts = [tuple(body["prompt"]) for body in fake.requests]
    assert len({p[:20] for p in prompts}) == 1
    assert len({p[20:] for p in prompts}) == len(prompts)
    assert {len(p) for p in prompts} == {32}


async def test_same_seed_same_requests(start: Start) -> None:
    first, second = await start(FakeOpenAI()), await start(FakeOpenAI())
    for fake in (first, second):
        assert await bench(fake, "--workload=16:2", "--concurrency=1", "--seed=11") == 0
    assert first.requests == second.requests


async def test_chat_prompts_have_exact_length_by_the_servers_tokenizer(start: Start) -> None:
    fake = await start(FakeOpenAI())
    assert await bench(fake, "--endpoint=chat", "--workload=50:3", "--concurrency=2") == 0
    assert {count_tokens(body) for body in fake.requests} == {50}


async def test_chat_without_a_tokenizer_says_what_is_missing(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    fake = await start(FakeOpenAI(tokenize=False))
    assert await bench(fake, "--endpoint=chat") == 1
    assert "/tokenize: HTTP 404" in capsys.readouterr().err


async def test_tokens_come_from_usage_not_from_chunks(start: Start, tmp_path: Path) -> None:
    fake = await start(FakeOpenAI(tokens_per_chunk=4))
    out = tmp_path / "out.json"
    assert await bench(fake, "--workload=8:12", "--concurrency=1", "--num-prompts=2", f"--json={out}") == 0
    (level,) = json.loads(out.read_bytes())["levels"]
    assert level["summary"]["output_tokens"] == 24
    assert {len(r["chunk_times"]) for r in level["requests"]} == {3}


FAULTS: dict[str, tuple[FakeOpenAI, str]] = {
    "ignores ignore_eos": (FakeOpenAI(stops_after=3), "asked for 8 output tokens, got 3: ignore_eos not honoured"),
    "breaks mid-stream": (FakeOpenAI(breaks_after=2), "ClientPayloadError"),
    "error event": (FakeOpenAI(error_event_after=2), "error in the stream: engine is dead"),
    "no usage": (FakeOpenAI(usage=False), "no usage in the stream: stream_options.include_usage not honoured"),
    "refuses": (FakeOpenAI(refuses=99), "HTTP 503: queue is full"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_failures_are_counted_shown_and_fatal(
    fault: str, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, message = FAULTS[fault]
    await start(fake)
    out = tmp_path / "out.json"
    argv = ("--workload=8:8", "--concurrency=2", "--num-prompts=4", "--warmup=0", f"--json={out}")
    assert await bench(fake, *argv) == 1
    assert f"4 x {message}" in capsys.readouterr().out
    summary = json.loads(out.read_bytes())["levels"][0]["summary"]
    assert (summary["completed"], summary["failed"], summary["output_tokens"]) == (0, 4, 0)


async def test_allow_failures_keeps_the_rest(start: Start, tmp_path: Path) -> None:
    fake = await start(FakeOpenAI(refuses=3))
    out = tmp_path / "out.csv"
    argv = ("--workload=8:8", "--concurrency=2", "--num-prompts=8", "--warmup=0", f"--csv={out}", "--allow-failures")
    assert await bench(fake, *argv) == 0
    (row,) = csv.DictReader(io.StringIO(out.read_text()))
    assert (row["completed"], row["failed"]) == ("5", "3")


async def test_a_failed_warm_up_ends_the_run(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    fake = await start(FakeOpenAI(refuses=1))
    assert await bench(fake) == 1
    assert "warm-up failed: HTTP 503: queue is full" in capsys.readouterr().err
    assert len(fake.requests) == 1


async def test_early_stops_are_fine_without_ignore_eos(start: Start) -> None:
    fake = await start(FakeOpenAI(stops_after=3))
    assert await bench(fake, "--workload=8:8", "--concurrency=1", "--no-ignore-eos") == 0
    assert "ignore_eos" not in fake.requests[0]


async def test_open_loop_sends_all_and_honours_the_cap(start: Start) -> None:
    fake = await start(FakeOpenAI(delay=0.001))
    argv = ("--workload=8:4", "--request-rate=2000", "--concurrency=2", "--num-prompts=20", "--warmup=0")
    assert await bench(fake, *argv) == 0
    assert len(fake.requests) == 20
    assert fake.most_in_flight == 2


async def test_compare_sends_both_the_same_prompts_and_prints_ratios(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, peer = await start(FakeOpenAI()), await start(FakeOpenAI())
    argv = (f"--compare=vllm={peer.url}/v1", "--workload=16:2", "--concurrency=1", "--repeat=2")
    assert await bench(ours, "--name=tandem", *argv) == 0
    assert ours.requests == peer.requests
    assert "tandem / peer" in capsys.readouterr().out


async def test_slo_table_climbs_and_prints_a_row_for_each_bound(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = await start(FakeOpenAI())
    out = tmp_path / "out.json"
    argv = ("--slo-table=90000,80000", "--slo=ttft=60s", "--max-concurrency=4", "--workload=8:3", "--gpus=2")
    assert await bench(fake, *argv, f"--json={out}") == 0
    printed = capsys.readouterr().out
    assert "ttft=60s,tpot=90s" in printed
    assert "raise it to find the edge" in printed
    document = json.loads(out.read_bytes())
    assert [level["load"]["concurrency"] for level in document["levels"]] == [1, 2, 4]
    assert [edge["unbounded"] for edge in document["edges"]] == [True, True]


async def test_unreachable_slo_finds_no_level(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    fake = await start(FakeOpenAI(delay=0.002))
    assert await bench(fake, "--slo=tpot=1us", "--sweep", "--workload=8:3") == 0
    assert "none" in capsys.readouterr().out


async def test_plot_is_a_png(start: Start, tmp_path: Path) -> None:
    fake = await start(FakeOpenAI())
    out = tmp_path / "out.png"
    argv = ("--slo=tpot=40ms,ttft=2s", "--concurrency=1,2,4", "--workload=8:3", f"--plot={out}")
    assert await bench(fake, *argv) == 0
    data = out.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1000
    assert height > 400
    assert data[-8:-4] == b"IEND"


async def test_api_key_is_sent_and_a_wrong_one_explained(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    fake = await start(FakeOpenAI(api_key="right"))
    assert await bench(fake, "--workload=8:2", "--api-key=right") == 0
    assert await bench(fake, "--workload=8:2", "--api-key=wrong") == 1
    assert "HTTP 401: no such key" in capsys.readouterr().err


async def test_a_silent_server_is_a_failure_after_the_timeout(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    fake = await start(FakeOpenAI(hangs_from=1))
    argv = ("--workload=8:2", "--concurrency=1", "--num-prompts=2", "--warmup=0", "--timeout=0.3")
    assert await bench(fake, *argv) == 1
    assert "1 x timed out (--timeout)" in capsys.readouterr().out


@pytest.mark.processes
async def test_an_interrupted_run_reports_the_levels_it_finished(start: Start, tmp_path: Path) -> None:
    fake = await start(FakeOpenAI(hangs_from=4))
    out = tmp_path / "out.json"
    code = "import sys; from tandem_runtime.bench.main import run; sys.exit(run(sys.argv[1:]))"
    argv = ("serve", f"--base-url={fake.url}", "--workload=8:2", "--concurrency=1,2", "--warmup=0", f"--json={out}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *argv,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await fake.hung.wait()
    process.send_signal(signal.SIGINT)
    stdout, stderr = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert b"interrupted" in stderr
    assert b"Throughput" in stdout
    assert [level["load"]["concurrency"] for level in json.loads(out.read_bytes())["levels"]] == [1]


async def test_nobody_listening_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeOpenAI()
    async with serving(fake):
        pass
    assert await bench(fake) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert fake.url in error[0]
