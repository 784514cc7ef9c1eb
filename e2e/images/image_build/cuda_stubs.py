"""Stand-ins for the CUDA libraries that torch's wheel links against but never calls on the CPU.

torch's only wheel is the CUDA build: 4.5 GB, of which 3 GB are libraries of NVIDIA that must be there when it
is loaded. On nodes without a GPU nobody calls them, so the test's base image carries empty ones with the same names,
symbols and symbol versions, and `Dockerfile.runtime` is built as it is with those wheels excluded (`UV_EXCLUDE`).
"""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

STUBBED = {
    "nvidia-cublas": ("libcublas.so.13", "libcublasLt.so.13"),
    "nvidia-cudnn-cu13": ("libcudnn.so.9",),
    "nvidia-cufft": ("libcufft.so.12",),
    "nvidia-cufile": ("libcufile.so.0",),
    "nvidia-cusolver": ("libcusolver.so.12",),
    "nvidia-cusparse": ("libcusparse.so.12",),
    "nvidia-cusparselt-cu13": ("libcusparseLt.so.0",),
    "nvidia-nccl-cu13": ("libnccl.so.2",),
    "nvidia-nvshmem-cu13": ("libnvshmem_host.so.3",),
    "nvidia-cuda-nvrtc": ("libnvrtc.so.13",),
}
"""Wheel to the libraries in it that torch is linked against. CUDA's runtime stays: torch asks it for devices."""
UNUSED = ("cuda-bindings", "nvidia-cuda-cccl", "nvidia-nvjitlink", "nvidia-nvtx", "triton")
"""Wheels that nothing loads on the CPU."""
EXCLUDED = (*STUBBED, *UNUSED)

# Symbols that carry no version, or one that is not named after its library.
_PREFIXES = {"nccl": "libnccl.so.2", "cuFile": "libcufile.so.0", "cusparseLt": "libcusparseLt.so.0"}
_VERSIONS = {"NVSHMEM": "libnvshmem_host.so.3"}


def build_stubs(torch_libraries: Path, folder: Path) -> None:
    """Writes one library for each of `STUBBED` into `folder`; every function in it fails with 1."""
    wanted = {soname for sonames in STUBBED.values() for soname in sonames}
    symbols: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for library in torch_libraries.glob("*.so"):
        for symbol, version in _undefined(library):
            soname = _VERSIONS.get(version, version) or next(
                (name for prefix, name in _PREFIXES.items() if symbol.startswith(prefix)), ""
            )
            if soname in wanted:
                symbols[soname].add((symbol, version))
    folder.mkdir(parents=True)
    for soname in wanted:
        _compile(folder / soname, symbols[soname])


def _undefined(library: Path) -> list[tuple[str, str]]:
    listed = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--with-symbol-versions", library],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return re.findall(r"^ +[Uu] (\w+)(?:@+(\S+))?$", listed, re.MULTILINE)


def _compile(path: Path, symbols: set[tuple[str, str]]) -> None:
    source = "".join(f"int {symbol}(void) {{ return 1; }}\n" for symbol, _ in sorted(symbols))
    versions = path.with_suffix(".map")
    versions.write_text("".join(f"{name} {{ *; }};\n" for name in sorted({name for _, name in symbols if name})))
    script = [f"-Wl,--version-script={versions}"] if versions.read_text() else []
    subprocess.run(
        ["gcc", "-shared", "-x", "c", "-", "-o", path, f"-Wl,-soname,{path.name}", *script],
        input=source, text=True, check=True,
    )  # fmt: skip
    versions.unlink()
