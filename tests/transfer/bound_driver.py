"""`CudaDevice` through the real bindings, on the driver of `support/driver_of_the_host.c`: what each call leaves alive.

python -m transfer.bound_driver CALL_THAT_FAILS ...; LD_LIBRARY_PATH names the driver's folder. Prints JSON: by the call
that failed ("": none), what was found.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from tandem_runtime.transfer.ipc.cuda import CudaDevice

SIZE = 5 << 20
"""No whole number of the driver's granules."""
COUNTS = ("handles", "mappings", "ranges")


def main() -> None:
    library = ctypes.CDLL("libcuda.so.1")
    failing = (ctypes.c_char * 64).in_dll(library, "failing")
    device = CudaDevice(0)
    memory_B, file = device.allocate(SIZE)
    found: dict[str, dict[str, Any]] = {"allocated": {"zeroed": not memory_B.any(), "alive": _alive(library)}}
    memory_B[SIZE - 1] = 9
    for call in ("", *sys.argv[1:]):
        failing.value = call.encode()
        case = found[call] = {}
        try:
            address = device.map(file, SIZE)
            case["mapped"] = _alive(library)
            page_B = torch.zeros(8, dtype=torch.uint8)
            device.copy(address + SIZE - 8, page_B)
            case["copied"] = page_B.tolist()
            device.unmap(address, SIZE)
        except OSError as error:
            case["error"] = str(error)
            failing.value = b""
            if "mapped" in case:
                device.unmap(address, SIZE)
        case["left"] = _alive(library)
    os.close(file)
    print(json.dumps(found))


def _alive(library: ctypes.CDLL) -> list[int]:
    return [ctypes.c_int.in_dll(library, name).value for name in COUNTS]


def as_tensor(data: Any, *, device: torch.device) -> torch.Tensor:
    """Torch's own looks for the memory's card."""
    array = data.__cuda_array_interface__
    held = (ctypes.c_uint8 * array["shape"][0]).from_address(array["data"][0])
    return torch.frombuffer(held, dtype=torch.uint8)


class Stream:
    cuda_stream = 0

    def __init__(self, device: torch.device) -> None: ...

    def synchronize(self) -> None:
        if (ctypes.c_char * 64).in_dll(ctypes.CDLL("libcuda.so.1"), "failing").value == b"cudaStreamSynchronize":
            raise RuntimeError("CUDA error: an illegal memory access\nand a page of advice")


if __name__ == "__main__":
    with (
        mock.patch("torch.cuda.Stream", Stream),
        mock.patch("torch.cuda.get_device_properties", return_value=SimpleNamespace(uuid="0", total_memory=SIZE)),
        mock.patch("torch.cuda.device_count", return_value=1),
        mock.patch("torch.as_tensor", as_tensor),
    ):
        main()
