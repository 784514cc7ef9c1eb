"""The scripts that measure on a GPU, run on the CPU with a tiny shape: they still fit what they measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def cases(script: str, *argv: str) -> list[dict[str, Any]]:
    paths = [
        *(str(REPOSITORY / folder) for folder in ("contract", "runtime", "kernels", "benchmarks")),
        os.environ.get("PYTHONPATH"),
    ]
    run = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks/gpu" / script), *argv, "--device=cpu"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.mark.processes
def test_steps() -> None:
    found = cases("steps.py", "tiny", "--batch", "1", "2", "--context=32", "--prefill=40", "--steps=3")
    assert [case["case"].split(" kv ")[1] for case in found] == [
        "auto decode, batch 1, context 32",
        "auto decode, batch 2, context 32",
        "auto prefill, 40 tokens",
    ]
    assert all(case["ms"] > case["floor ms"] >= 0 for case in found)


@pytest.mark.processes
def test_steps_of_more_sequences_than_have_room_are_left_out() -> None:
    """Symptom: on 80 GB, 64 sequences of Qwen3-32B shared their pages, and looked faster than they are."""
    sizes = ("--batch", "1", "2", "--context=32", "--prefill=40", "--steps=3", "--kv-cache-memory=32KiB")
    found = cases("steps.py", "tiny", *sizes)
    assert found[1]["left out"] == "needs 6 KV pages, and beside the weights the card has 4"
    assert ["ms" in case for case in found] == [True, False, True]


@pytest.mark.processes
def test_peer() -> None:
    ours, theirs = cases("peer.py", "tiny", "--requests=3", "--prompt=20", "--answer=5")
    assert (ours["engine"], theirs["engine"], theirs["ratio"]) == ("tandem", "transformers", 1.0)
    assert ours["ratio"] > 0


@pytest.mark.processes
def test_server(tmp_path: Path) -> None:
    kept = tmp_path / "levels.json"
    limits = ("--tpot", "1e6", "--min-concurrency=1", "--max-concurrency=2", "--max-model-len=64", f"--kept={kept}")
    one, two, edge = cases("server.py", "tiny", "--workload=24:4", *limits, "--kv-cache-memory=64MiB")
    assert [(row["workload"], row["concurrency"], row["failed"]) for row in (one, two)] == [
        ("24:4", n, 0) for n in (1, 2)
    ]
    # Not the time per output token: on a busy machine all four tokens may come at once.
    assert all(row["output_tok_per_s"] > 0 and row["floor TPOT ms"] >= 0 for row in (one, two))
    assert {"mean_ttft_ms", "mean_tpot_ms", "req_per_s", "total_tok_per_s_per_gpu", "of floor"} <= set(one)
    assert edge["TPOT below ms"] == 1e6
    assert edge["note"] == "the most that was tried"
    assert list(json.loads(kept.read_text()).values()) == [one, two]


@pytest.mark.processes
def test_handoff() -> None:
    found = cases("handoff.py", "--mib=16", "--rounds=1")
    assert [row["transport"] for row in found] == ["ipc", "tcp"]
    assert all(row["best GB/s"] >= row["GB/s"] > 0 for row in found)


@pytest.mark.processes
def test_together() -> None:
    limits = ("--max-model-len=64", "--kv-cache-memory=64MiB", "--local-prefill-max-tokens=0")
    alone, two = cases("together.py", "tiny", "--workload=24:4", "--concurrency=2", *limits)
    assert (alone["way"], alone["of tandem serve"], alone["failed"]) == ("tandem serve", 1.0, 0)
    assert (two["way"], two["failed"]) == ("tandem up, ipc", 0)
