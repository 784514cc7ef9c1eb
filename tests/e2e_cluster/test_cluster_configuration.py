import re
import subprocess
import tomllib
from pathlib import Path

from tandem_cluster import control_plane, node, supervisor
from tandem_cluster.plan import Plan

PLAN = Plan(1)


def test_the_first_process_is_a_valid_script_whose_arguments_keep_their_spaces(tmp_path: Path) -> None:
    daemon = supervisor.Daemon("speaker", ("echo", "two words", "$HOME"), after=Path("/run/a socket"))
    text = supervisor.script(PLAN.control, Path("/a folder/bin"), [daemon])
    file = tmp_path / "init.sh"
    file.write_text(text)
    subprocess.run(["sh", "-n", str(file)], check=True)
    assert "keep speaker '/run/a socket' echo 'two words' '$HOME' &" in text
    assert "mount --bind '/a folder/bin'" in text


def test_a_daemon_that_ends_is_started_again(tmp_path: Path) -> None:
    """The script's loop, run for real without its mounts: the second start ends the test."""
    text = supervisor.script(PLAN.control, Path("/bin"), [])
    loop = (
        text[text.index("keep() {") : text.index("\n}\n") + 3].replace("/var/log", str(tmp_path)).replace("sleep 1", "")
    )
    started = 'echo started >>log; [ "$(wc -l <log)" -lt 2 ] || kill $PPID'
    subprocess.run(["sh", "-c", loop + 'keep one "" sh -c "$1"', "sh", started], cwd=tmp_path, timeout=20)
    assert (tmp_path / "log").read_text() == "started\nstarted\n"


def test_a_machines_own_folders_are_found_from_the_host() -> None:
    machine = PLAN.nodes[0]
    assert supervisor.on_host(machine, node.CONTAINERD_SOCKET) == machine.folder / "run/containerd/containerd.sock"


def test_files_are_readable_by_root_only(tmp_path: Path) -> None:
    machine = type(PLAN.control)("control", "ns", PLAN.control.address, tmp_path)
    supervisor.write_files(machine, {Path("/run/pki/ca.key"): "secret"})
    assert (tmp_path / "run/pki/ca.key").stat().st_mode & 0o777 == 0o600


def test_containerd_never_lowers_oom_scores_and_knows_the_sandbox() -> None:
    config = tomllib.loads(node.containerd_config("localhost/box:1"))
    cri = config["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["restrict_oom_score_adj"] is True
    assert cri["sandbox_image"] == "localhost/box:1"
    assert config["state"] == str(node.CONTAINERD_SOCKET.parent)


def test_the_disk_of_the_host_evicts_nothing() -> None:
    config = node.kubelet_config(PLAN, PLAN.nodes[0])
    assert config["evictionHard"] == {}
    assert config["imageGCHighThresholdPercent"] == 100
    assert config["cgroupRoot"] == "/tandem-e2e-1/node-1"


def test_each_node_hands_out_its_own_pod_addresses() -> None:
    first, second = (node.cni_config(machine)["plugins"] for machine in PLAN.nodes)
    assert first[0]["ipam"]["subnet"] == str(PLAN.nodes[0].pods)  # type: ignore[index]
    assert second[0]["ipam"]["subnet"] == str(PLAN.nodes[1].pods)  # type: ignore[index]


def test_credentials_are_the_files_that_are_written() -> None:
    """Every file below /run/pki that a daemon is told to read is one that pki makes."""
    from tandem_cluster import pki

    made = {f"{certificate.file}.{kind}" for certificate in pki.certificates(PLAN) for kind in ("crt", "key")}
    made |= {"ca.crt", "ca.key", "service-accounts.key", "service-accounts.pub"}
    commands = [argument for daemon in control_plane.daemons(PLAN) for argument in daemon.command]
    read = {name for argument in commands for name in re.findall(rf"{control_plane.PKI}/(\S+)", argument)}
    assert read
    assert read <= made


def test_kubelet_finds_its_kernel_settings_done_in_copies() -> None:
    """It sets them for the whole kernel otherwise: after a test the host would panic on an oops, and overcommit."""
    files = node.files(PLAN, PLAN.nodes[0], "localhost/box:1")
    text = supervisor.script(PLAN.nodes[0], Path("/bin"), [], node.KERNEL_SETTINGS)
    for setting, value in node.KERNEL_SETTINGS.items():
        assert files[supervisor.copy_of(setting)] == value
        assert f"mount --bind {supervisor.copy_of(setting)} {setting}\n" in text
