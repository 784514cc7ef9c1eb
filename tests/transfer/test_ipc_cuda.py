"""The driver's own calls: memory of one process mapped in another, also once the first has ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from tandem_runtime.transfer.ipc import doors
from tandem_runtime.transfer.ipc.checksum import WordSums
from transfer.rig import layout

pytestmark = pytest.mark.gpu

SIZE = 3 << 20
SHARER = f"""
import socket, sys
from tandem_runtime.transfer.ipc import doors
from tandem_runtime.transfer.ipc.cuda import CudaDevice
cache, file = CudaDevice(0).allocate({SIZE})
assert not cache.any()
cache.fill_(0x55)
cache.sum().item()
sock = socket.socket(fileno=int(sys.argv[1]))
sock.sendmsg([b"x"], doors.with_files([file]))
sys.stdin.read()
"""


@pytest.fixture
def shared() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A descriptor of 3 MiB of 0x55 on the card, and the process that made it."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here, there = socket.socketpair()
    with here, there:
        process = subprocess.Popen(
            [sys.executable, "-c", SHARER, str(there.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[there.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        there.close()
        _, [file] = doors.receive(here, 1)
        yield file, process
    process.kill()
    process.communicate()
    doors.close_all([file])


def test_pages_are_copied_from_another_process_even_when_it_is_dead(
    shared: tuple[int, subprocess.Popen[bytes]],
) -> None:
    from tandem_runtime.transfer.ipc.cuda import CudaDevice

    file, process = shared
    device = CudaDevice(0)
    address = device.map(file, SIZE)
    assert is_mapped(address)
    page_B = torch.zeros(layout().page_bytes, dtype=torch.uint8, device="cuda")
    sums, host_sums = WordSums(layout(), page_B.device), WordSums(layout(), torch.device("cpu"))
    device.copy(address, page_B)
    assert (page_B == 0x55).all()
    assert device.checksum(page_B, sums) == host_sums(page_B.cpu())

    process.kill()
    process.wait()
    page_B.zero_()
    torch.cuda.synchronize()
    device.copy(address + SIZE - page_B.numel(), page_B)
    assert (page_B == 0x55).all()
    device.unmap(address, SIZE)
    assert not is_mapped(address)


def is_mapped(address: int) -> bool:
    """In this process; what is free on the card would be other processes' matter too."""
    from cuda.bindings import driver

    status, _ = driver.cuPointerGetAttribute(driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)
    assert status in (driver.CUresult.CUDA_SUCCESS, driver.CUresult.CUDA_ERROR_INVALID_VALUE), status
    return bool(status == driver.CUresult.CUDA_SUCCESS)


def test_what_is_no_memory_of_a_card_cannot_be_mapped() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from tandem_runtime.transfer.ipc.cuda import CudaDevice

    with open(os.devnull) as file, pytest.raises(OSError, match="CUDA_ERROR"):
        CudaDevice(0).map(file.fileno(), SIZE)
