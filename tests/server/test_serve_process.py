"""`tandem serve` as a user starts it: real processes, a tiny random model, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest
from support import tiny_models
from support.ports import free_port
from tandem_contract.flags import ServeFlags
from tandem_runtime.engine.process_client import ProcessEngineClient

pytestmark = pytest.mark.processes

READY_WITHIN_S = 120.0
"""Generous: imports of torch on a busy machine."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside it lies a module of the user's own, where the pods are started from."""
    models = tmp_path_factory.mktemp("models")
    (models / "types.py").write_text("raise SystemExit('this is no module of the server')")
    return tiny_models.build_tiny_model(models / "tiny-qwen3", "qwen3")


class Pod:
    def __init__(self, model: Path, *argv: str) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("tandem")),
                *("serve", f"--model={model}", "--host=127.0.0.1"),
                *(f"--port={self.port}", f"--metrics-port={free_port()}", "--device=cpu", "--cpu-threads=1"),
                *("--kv-cache-memory=16MiB", *argv),
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=model.parent,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()[1]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("not ready in time")

    def end(self) -> tuple[int, str]:
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log


@pytest.fixture
def pod(model: Path) -> Iterator[Pod]:
    pod = Pod(model)
    yield pod
    if pod.process.poll() is None:
        for process in [*pod.children(), psutil.Process(pod.process.pid)]:
            process.kill()
        pod.process.communicate()


async def test_an_engine_that_is_ready_has_told_of_its_pages(model: Path) -> None:
    """Symptom: for its first second a ready pod had no KV page, by its metrics and to the gateway."""
    flags = ServeFlags(model=str(model), device="cpu", cpu_threads=1, kv_cache_memory="16MiB")
    client = ProcessEngineClient(flags, "pod")
    client.start()
    try:
        await asyncio.wait_for(client.wait_ready(), READY_WITHIN_S)
        assert client.status.kv_pages_total == client.info.num_pages
    finally:
        await client.close()


def test_serves_and_leaves_nothing_behind(pod: Pod) -> None:
    pod.wait_ready()
    with pod.client as client:
        answers = [
            client.chat.completions.create(
                model="tiny-qwen3", messages=[{"role": "user", "content": "hi"}], max_tokens=12, seed=3, n=2
            )
            for _ in range(2)
        ]
        assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
        assert answers[0].choices[0].message.content != answers[0].choices[1].message.content
        stream = client.completions.create(model="tiny-qwen3", prompt="hi", max_tokens=8, stream=True, temperature=0)
        whole = client.completions.create(model="tiny-qwen3", prompt="hi", max_tokens=8, temperature=0)
        assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    children = pod.children()
    assert children
    pod.process.send_signal(signal.SIGTERM)
    status, log = pod.end()
    assert status == 0
    assert "ready in" in log
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_a_killed_engine_ends_the_pod(pod: Pod) -> None:
    pod.wait_ready()
    children = pod.children()
    engine = max(children, key=lambda child: child.memory_info().rss)
    engine.kill()
    status, log = pod.end()
    assert status == 1
    assert "the engine died" in log
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_an_end_while_loading_is_quiet(pod: Pod) -> None:
    """Symptom: a traceback, 'Future exception was never retrieved'. Cause: the engine's end was nobody's to hear of."""
    deadline = time.monotonic() + READY_WITHIN_S
    while len(pod.children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    pod.process.send_signal(signal.SIGTERM)
    status, log = pod.end()
    assert (status, "Traceback" in log, "never retrieved" in log) == (0, False, False), log


def test_a_busy_port_is_one_clear_line(model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, log = Pod(model, f"--port={taken.getsockname()[1]}").end()
    assert status == 1
    (line,) = log.strip().splitlines()
    assert "--port" in line
    assert "in use" in line
