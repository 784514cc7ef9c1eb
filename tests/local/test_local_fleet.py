"""The fleet's life and death, over real processes that stand in for the pods."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tandem_runtime.local.ports import free_ports

pytestmark = pytest.mark.processes
FAKE_FLEET = str(Path(__file__).with_name("fake_fleet.py"))


class Fleet:
    """A running `tandem up` or `tandem demo`, read line by line."""

    def __init__(self, model: Path, command: str, *args: str) -> None:
        self.model = model
        self.port, self.metrics_port = free_ports("127.0.0.1", 2)
        where = [f"--model={model}", f"--port={self.port}", f"--metrics-port={self.metrics_port}"]
        self.process = subprocess.Popen(
            [sys.executable, FAKE_FLEET, command, *where, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"TANDEM_CACHE": str(model / "cache")},
        )
        self.said = ""

    def until(self, pattern: str) -> re.Match[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if match := re.search(pattern, line):
                return match
        pytest.fail(f"never said {pattern!r}, but:\n{self.said}")

    def pods(self) -> list[psutil.Process]:
        """Pods and their engines that are alive."""
        return [psutil.Process(int(p.name)) for p in self.model.glob("pids/*") if psutil.pid_exists(int(p.name))]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.status()

    def status(self) -> int:
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        return self.process.wait(timeout=20)


@contextmanager
def fleet(model: Path, command: str, *args: str) -> Iterator[Fleet]:
    running = Fleet(model, command, *args)
    with running.process:
        try:
            yield running
        finally:
            running.process.kill()
            for left_by_a_failed_test in running.pods():
                left_by_a_failed_test.kill()
            running.status()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_process(model: Path, number: signal.Signals) -> None:
    with fleet(model, "up", "--prefill=2") as running:
        running.until("API:")
        pods = running.pods()
        assert len(pods) == 6, "three pods, each with its engine"
        assert running.end(number) == 0
        assert gone(pods)


def test_kill_9_of_the_supervisor_leaves_nothing(model: Path) -> None:
    with fleet(model, "up") as running:
        running.until("API:")
        supervisor = psutil.Process(running.process.pid)
        processes = supervisor.children(recursive=True)
        assert len(processes) == 5, "gateway, two pods, two engines"
        running.process.kill()
        assert gone(processes)


def test_a_second_signal_kills_pods_that_will_not_end(model: Path) -> None:
    (model / "stubborn").touch()
    with fleet(model, "up") as running:
        running.until("API:")
        pods = running.pods()
        running.process.send_signal(signal.SIGINT)
        running.until("gateway +.*stopped")
        assert running.end(signal.SIGINT) == 0
        assert gone(pods)


def test_a_dead_pod_comes_back_on_its_ports(model: Path) -> None:
    with fleet(model, "up") as running:
        port = running.until(r"decode-0 .*listens on (\d+)")[1]
        running.until("API:")
        victim = next(p for p in running.pods() if "--role=decode" in p.cmdline())
        engine = victim.children()
        victim.kill()
        assert running.until(r"decode-0 .*restarting (.*)")[1] == "in 0.5 s; it was ended by SIGKILL"
        assert gone(engine), "the dead pod's engine must not keep memory or ports"
        assert running.until(r"decode-0 .*listens on (\d+)")[1] == port
        running.until(r"decode-0 .*ready")


def test_a_pod_that_refuses_to_start_ends_the_fleet_with_its_own_words(model: Path) -> None:
    (model / "refuse").write_text("tandem serve: FooForCausalLM is not supported")
    with fleet(model, "up") as running:
        assert running.status() == 1
        last = running.said.strip().splitlines()[-1]
        assert re.fullmatch(r"tandem up: (prefill|decode)-0: FooForCausalLM is not supported", last)


def test_a_busy_port_is_one_line(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with fleet(model, "up", f"--port={port}") as running:
            assert running.status() == 1
            assert (
                running.said == f"tandem up: port {port} is in use; stop what listens there or choose another --port\n"
            )
    assert not (model / "pids").exists()


def test_a_bad_template_is_one_line_and_starts_nothing(model: Path) -> None:
    with fleet(model, "up", "--", f"--chat-template={model}") as running:
        assert running.status() == 1
    wants = "name a Jinja file, or leave the flag out for the model's own"
    assert running.said == f"tandem up: --chat-template {model}: it is a folder; {wants}\n"
    assert not (model / "pids").exists()


def test_a_pods_flag_that_the_fleet_decides_starts_nothing(model: Path) -> None:
    with fleet(model, "up", "--", "--host=0.0.0.0") as running:
        assert running.status() == 2
    assert "tandem up: error: --host cannot stand after --" in running.said.splitlines()[-1]
    assert not (model / "pids").exists()


def test_log_dir_holds_each_process_output(model: Path) -> None:
    logs = model / "new" / "logs"
    with fleet(model, "up", f"--log-dir={logs}") as running:
        running.until("API:")
        running.end(signal.SIGINT)
    assert "gateway listens on" in (logs / "gateway.log").read_text()
    assert "serve listens on" in (logs / "decode-0.log").read_text()


def test_the_demo_answers_says_where_it_went_and_ends(model: Path) -> None:
    with fleet(model, "demo", "--once") as running:
        assert running.status() == 0
    assert "A: Paris, of course." in running.said
    for fact in (
        "prefill-0",
        "decode-0",
        "3 pages, 2 KiB in 12 ms, through shared memory",
        "34 ms",
        "5.6 ms",
        "4 tokens",
    ):
        assert fact in running.said
    assert f"curl http://127.0.0.1:{running.port}/v1/chat/completions" in running.said
    assert f"http://127.0.0.1:{running.metrics_port}/metrics" in running.said
    assert gone(running.pods())


def test_the_demo_serves_on_until_ctrl_c(model: Path) -> None:
    with fleet(model, "demo") as running:
        running.until("Ctrl-C")
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/v1/models") as answer:
            assert answer.status == 200
        assert running.end(signal.SIGINT) == 0
