"""What `CudaDevice` asks of the driver, by the real bindings; and a handoff between two processes on a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tandem_runtime.transfer.cuda import CudaCopyEngine
from tandem_runtime.transfer.ipc.device import DeviceImport
from tandem_runtime.transfer.ipc.reads import IpcReads
from tandem_runtime.transfer.protocol import ReceiveJob
from tandem_runtime.transfer.staging import StagedPages
from tandem_runtime.transfer.tcp import TcpReceiver
from transfer.rig import TOKEN, Reports, layout

DRIVER = Path(__file__).parents[1] / "support/driver_of_the_host.c"
MAPPING = ("cuMemImportFromShareableHandle", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess")

COPYING = {
    "cuMemcpyDtoDAsync_v2": "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaStreamSynchronize": "CUDA error: an illegal memory access",
}
"""And what is said where it fails."""


def python(*argv: str) -> list[str]:
    return ["env", f"PYTHONPATH={os.pathsep.join(sys.path)}", sys.executable, "-m", *argv]


def test_memory_lives_by_its_mappings_alone_and_what_cannot_be_mapped_leaves_nothing(tmp_path: Path) -> None:
    """Alive are handles, mappings, and ranges of addresses."""
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", DRIVER, "-ldl"], check=True)
    command = ["env", f"LD_LIBRARY_PATH={tmp_path}", *python("transfer.bound_driver", *MAPPING, *COPYING)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert found.pop("allocated") == {"zeroed": True, "alive": [0, 1, 1]}
    assert found.pop("") == {"mapped": [0, 2, 2], "copied": [0, 0, 0, 0, 0, 0, 0, 9], "left": [0, 1, 1]}
    for call, error in COPYING.items():
        assert found.pop(call) == {"mapped": [0, 2, 2], "error": error, "left": [0, 1, 1]}
    assert found == {call: {"error": "CUDA_ERROR_OUT_OF_MEMORY", "left": [0, 1, 1]} for call in MAPPING}


@pytest.mark.gpu
def test_a_handoff_between_two_processes_on_a_card(tmp_path: Path) -> None:
    """The receiver's TCP port is told as 0: pages that arrive were read in the sender's memory."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from tandem_runtime.transfer.ipc.cuda import CudaDevice

    shape, reports, path = layout(), Reports(), str(tmp_path / "kv")
    with torch.inference_mode():
        cache = torch.zeros((8, shape.page_bytes), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    reads = IpcReads(DeviceImport(CudaDevice(0), cache, shape, 0), path)
    sink = StagedPages(CudaCopyEngine(cache), shape, 0, 8)
    receiver = TcpReceiver(sink, reports.of_rank(0), host="127.0.0.1", ipc=reads)
    command = python("transfer.sender_process", "0", "job", "[[3, 1], [6, 1]]", path, "cuda")
    sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert sender.stdin is not None
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
        receiver.open(ReceiveJob(job_id="job", data_token=TOKEN, sender_tp=1, slots=[(3, 1), (6, 1)]))
        sender.stdin.write("open\nsend 0 2\nfinish\n")
        sender.stdin.flush()
        assert reports.wait("job").ok
    finally:
        sender.kill()
        sender.communicate()
        receiver.stop()
    expected = torch.zeros_like(cache)
    expected[[3, 6]] = 0x55
    assert torch.equal(cache, expected)
