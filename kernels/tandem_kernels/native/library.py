"""Builds the C sources with the machine's compiler, once per source, compiler and processor, and loads the result."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

SOURCES = Path(__file__).parent
UNIT = ("rms_norm.c", "silu_and_mul.c", "qk_norm_rope_kv_write.c", "paged_attention.c", "linear.c")
ELEMENTS = {torch.float32: 32, torch.float16: 16, torch.bfloat16: 0}
BUILD_TIMEOUT_S = 120


class NativeError(Exception):
    """The kernels cannot be had on this machine; the message says why."""


@lru_cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The kernels over tensors of `dtype`; raises `NativeError`."""
    if dtype not in ELEMENTS:
        raise NativeError(f"no kernels for {dtype}")
    try:
        return _library(dtype)
    except OSError as error:
        raise NativeError(f"the kernels cannot be built: {error}") from error


def typed(function: Any, *types: type) -> Callable[..., None]:
    function.argtypes, function.restype = types, None
    return function  # type: ignore[no-any-return]


def _library(dtype: torch.dtype) -> ctypes.CDLL:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NativeError("no C compiler (gcc 12 or newer) on PATH")
    native = "-mcpu=native" if platform.machine() == "aarch64" else "-march=native"
    # Every a * b + c is fused: were some fused and some not, a row's bits would depend on the loop it fell into.
    flags = ["-std=gnu11", "-O3", native, "-fopenmp", "-fPIC", "-ffp-contract=fast", f"-DELEMENT={ELEMENTS[dtype]}"]
    openmp = _openmp_of_torch()
    path = _cache_folder() / _key(compiler, flags, openmp) / "kernels.so"
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            path.unlink(missing_ok=True)  # cut off by a full disk or a crash
    path.parent.mkdir(exist_ok=True)
    _build(compiler, flags, openmp, path)
    return ctypes.CDLL(str(path))


def _build(compiler: str, flags: list[str], openmp: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        unit, built = Path(scratch, "unit.o"), Path(scratch, path.name)
        includes = "".join(f'#include "{name}"\n' for name in UNIT)
        _run([compiler, *flags, f"-I{SOURCES}", "-x", "c", "-c", "-", "-o", str(unit)], includes)
        # Torch's own OpenMP: a second one would bring a second set of threads that spin on the same cores.
        _run([compiler, "-shared", str(unit), str(openmp), "-lm", "-o", str(built)], "")
        # Another process may build the same: whoever renames last wins, with the same bytes.
        os.replace(built, path)


def _run(command: list[str], source: str) -> None:
    try:
        done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise NativeError(f"{command[0]} did not finish within {BUILD_TIMEOUT_S} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise NativeError(f"{command[0]} failed: {next((line for line in lines if 'error' in line), lines[:1])}")


def _openmp_of_torch() -> Path:
    torch.get_num_threads()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith("libgomp"):
            return path
    raise NativeError("torch does not run on GNU OpenMP here")


def _key(compiler: str, flags: list[str], openmp: Path) -> str:
    sources = "".join(file.read_text() for file in sorted(SOURCES.glob("*.[ch]")))
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    everything = (sources, version, *flags, str(openmp), _processor())
    return hashlib.sha256("\0".join(everything).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `native` means: a cache folder may be shared by machines of several kinds."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _cache_folder() -> Path:
    """Where only this user can put what is loaded."""
    chosen = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    temporary = Path(tempfile.gettempdir(), f"tandem-kernels-{os.getuid()}")
    for folder in (Path(chosen, "tandem", "kernels"), temporary):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            state = folder.stat()
        except OSError:
            continue
        if state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    raise NativeError(f"neither {chosen} nor {temporary.parent} has a folder that only this user can write")
