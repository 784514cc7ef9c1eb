"""Compiles a `Launch` ahead of time for a GPU that need not be there, and reads what it would use there.

The specialisation is the one Triton's launcher makes: integers equal to 1 are constants, integers and addresses that
16 divides are marked so.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from tandem_kernels.launch import Launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SM_80, SM_90 = GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}
_DIVISIBLE = [["tt.divisibility", 16]]


@dataclass(frozen=True)
class Resources:
    registers: int
    """Of one thread."""
    spilled_bytes: int
    """Local memory of one thread beyond the ABI's stack."""
    shared_bytes: int
    ptx: str


def resources(launch: Launch, target: GPUTarget) -> Resources:
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(launch.constants)
    attributes: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(launch.kernel.arg_names):
        if name in launch.constants:
            signature[name] = "constexpr"
            continue
        value = launch.args[name]
        signature[name], divisible = _type_of(value)
        if signature[name] == "constexpr":
            constants[name] = value
        elif divisible:
            attributes[(index,)] = _DIVISIBLE
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=launch.options)
    registers, stack = _usage(compiled.asm["cubin"])
    return Resources(registers, stack, compiled.metadata.shared, compiled.asm["ptx"])


def _type_of(value: Any) -> tuple[str, bool]:
    match value:
        case torch.Tensor():
            return _POINTERS[value.dtype], True
        case bool():
            return "i1", False
        case int():
            if value == 1:
                return "constexpr", False
            return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0
        case float():
            return "fp32", False
        case None:
            return "constexpr", False
    raise TypeError(f"{type(value).__name__} is no kernel argument")


def _usage(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", run.stdout)
    assert found is not None, run.stdout
    return int(found[1]), int(found[2])
