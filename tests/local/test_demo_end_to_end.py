"""`tandem demo --once` as a newcomer runs it: real model, real pods, real handoff."""

import os
import re
import subprocess
import sys

import psutil
import pytest
from tandem_runtime.local.cache import cache_root
from tandem_runtime.local.demo_model import demo_model
from tandem_runtime.local.ports import free_ports


@pytest.mark.model
@pytest.mark.processes
@pytest.mark.timeout(600)
def test_the_demo_hands_over_answers_and_leaves_nothing() -> None:
    demo_model(cache_root(os.environ))
    port, metrics_port = free_ports("127.0.0.1", 2)
    demo = [sys.executable, "-m", "tandem_cli.main", "demo", f"--port={port}", f"--metrics-port={metrics_port}"]
    mark = f"demo-test-{os.getpid()}"
    done = subprocess.run(
        [*demo, "--once"], capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "MARK": mark}
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "decode-0" in done.stdout
    moved = re.search(r"KV moved +│ (\d+) pages, ([\d,]+) KiB in \d+ ms, through shared memory", done.stdout)
    assert moved is not None, done.stdout
    pages, kib = (int(number.replace(",", "")) for number in moved.groups())
    # 30 layers, keys and values, 3 KV heads of 64 in bf16: 360 KiB for a page of 16 tokens.
    assert (pages > 0, kib) == (True, 360 * pages)
    assert not [process for process in psutil.process_iter() if _environ(process).get("MARK") == mark]


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
