"""The `tandem` command as a person types it."""

import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
from tandem_cli.main import COMMANDS, Command, invoke

pytestmark = pytest.mark.processes


def tandem(*argv: str, python: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *python, "-m", "tandem_cli.main", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_command_and_imports_no_package() -> None:
    answer = tandem("--help", python=("-X", "importtime"))
    assert answer.returncode == 0
    assert all(f"\n  {name} " in answer.stdout for name in COMMANDS)
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"argparse", "asyncio", "aiohttp", "torch", "transformers", "tandem_runtime"}


def test_version() -> None:
    assert tandem("--version").stdout == f"tandem {version('tandem-serving')}\n"


def test_no_command_shows_usage_and_fails() -> None:
    assert tandem().returncode == 2


def test_unknown_command_lists_the_known_ones() -> None:
    answer = tandem("sevre")
    assert answer.returncode == 2
    assert answer.stderr.startswith("tandem: no command 'sevre'; one of: serve, gateway, ")


@pytest.mark.parametrize("name", ["serve", "gateway", "up", "demo", "bench"])
def test_each_command_explains_itself(name: str) -> None:
    answer = tandem(name, "--help")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith(f"usage: tandem {name} ")


def test_bad_flags_are_one_line_after_the_usage() -> None:
    answer = tandem("serve", "--model=/m", "--role=decode")
    assert answer.returncode == 2
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("tandem serve: error: --ticket-key-file is required with --role decode")


def test_a_missing_model_folder_is_one_line() -> None:
    answer = tandem("up", "--model=/no/such/folder", "--port=0", "--metrics-port=0")
    assert answer.returncode == 1
    assert answer.stderr.startswith("tandem up: there is no folder /no/such/folder; ")
    assert answer.stderr.count("\n") == 1


def test_a_missing_extra_is_one_line_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    def handler(argv: list[str]) -> int:
        import a_package_nobody_has.submodule  # type: ignore[import-not-found]

        return int(a_package_nobody_has.submodule)

    assert invoke("serve", Command("", "runtime", handler), []) == 1
    message = "tandem serve: the package a_package_nobody_has is not installed; pip install 'tandem-serving[runtime]'\n"
    assert capsys.readouterr().err == message


def test_the_first_process_of_a_container_ends_when_told_to_while_it_imports() -> None:
    """Symptom: a pod deleted a few seconds after its start loaded its model, served, and held its GPUs for the whole
    grace period."""
    alone = ("unshare", "--user", "--map-root-user", "--pid", "--fork")
    if subprocess.run([*alone, "true"], capture_output=True, timeout=60, check=False).returncode != 0:
        pytest.skip("this machine lets nobody make a PID namespace")
    script = """\
import os, signal, sys
from tandem_cli.main import COMMANDS, Command, main

COMMANDS["import"] = Command("", "", lambda argv: os.kill(os.getpid(), signal.SIGTERM))
sys.exit(main(["import"]))
"""
    told = subprocess.run([*alone, sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert told.returncode == 128 + signal.SIGTERM, told.stderr


def test_a_module_of_ours_that_is_missing_is_a_bug_and_not_hidden() -> None:
    def handler(argv: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'tandem_runtime.x'", name="tandem_runtime.x")

    with pytest.raises(ModuleNotFoundError):
        invoke("serve", Command("", "runtime", handler), [])
