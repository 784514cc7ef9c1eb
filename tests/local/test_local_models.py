"""What `--model` may say, and the demo model itself."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from tandem_runtime.core.errors import StartupError
from tandem_runtime.local.cache import cache_root
from tandem_runtime.local.demo_model import ROOM_BYTES, check_room, demo_model
from tandem_runtime.local.models import resolve_model, weight_bytes
from tandem_runtime.local.ports import POD_PORTS, free_ports, require_free

NO_HUB = (sys.executable, "-c", "import sys; sys.exit('tandem fetch: the hub cannot be reached')")
HUB = (
    sys.executable,
    "-c",
    "import sys, pathlib; assert sys.argv[2] == '--uri=hf://Org/Name', sys.argv;"
    "pathlib.Path(sys.argv[3].removeprefix('--destination=')).mkdir(parents=True)",
)


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    assert resolve_model(str(tmp_path), tmp_path, launcher=()) == tmp_path


@pytest.mark.parametrize("model", ["/no/such/folder", "./gone", "nothing"])
def test_a_missing_folder_is_named(model: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=f"^there is no folder {model};"):
        resolve_model(model, tmp_path, launcher=NO_HUB)


def test_a_disk_without_room_for_the_demo_model_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    """Symptom: a traceback of the conversion, or advice to check the network."""
    check_room(tmp_path, ROOM_BYTES)
    with pytest.raises(StartupError, match=f"needs 500 MB in {tmp_path} and 250 MB are free; .* set TANDEM_CACHE"):
        check_room(tmp_path, ROOM_BYTES // 2)


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path), tmp_path, launcher=())


def test_a_hub_id_is_fetched_into_the_cache(tmp_path: Path) -> None:
    assert resolve_model("Org/Name", tmp_path, launcher=HUB) == tmp_path / "models" / "Org" / "Name"


def test_an_unreachable_hub_says_what_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StartupError, match=r"^could not fetch Org/Name: .* pass its folder$"):
        resolve_model("Org/Name", tmp_path, launcher=NO_HUB)
    assert "tandem fetch: the hub cannot be reached" in capfd.readouterr().err


def test_a_port_that_a_pod_has_bound_while_it_loads_is_not_free() -> None:
    with socket.socket() as loading:
        loading.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        (port,) = free_ports("127.0.0.1", 1)
        loading.bind(("127.0.0.1", port))
        with pytest.raises(StartupError, match="no 1 free ports"):
            free_ports("127.0.0.1", 1, avoid=set(POD_PORTS) - {port})


def test_free_ports_are_distinct_and_avoid_the_gateways() -> None:
    ports = free_ports("127.0.0.1", 50)
    assert len(set(ports)) == 50
    for port in ports:
        require_free("127.0.0.1", port, "--port")
    few = POD_PORTS[:100]
    assert set(free_ports("127.0.0.1", 50, avoid=POD_PORTS[100:])) <= set(few)


def test_an_address_that_is_not_ours_names_the_flag() -> None:
    with pytest.raises(StartupError, match=r"^cannot listen on 192\.0\.2\.1:8000: .*--host"):
        require_free("192.0.2.1", 8000, "--port")


@pytest.mark.model
def test_the_demo_model_is_a_whole_bf16_folder() -> None:
    folder = demo_model(cache_root(os.environ))
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"], config["dtype"]) == ("llama", 30, "bfloat16")
    assert (folder / "tokenizer.json").is_file()
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()
    assert 260e6 < weight_bytes(folder) < 280e6
    assert demo_model(cache_root(os.environ)) == folder
