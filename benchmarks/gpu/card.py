"""The card, what is installed, and the ceilings that floors are computed from, measured. Prints JSON lines.

Fails where something is missing that the other parts import, and names it.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable

import torch

NEEDED = (
    *("aiohttp", "jinja2", "llguidance", "msgspec", "numpy", "orjson", "prometheus_client", "psutil", "pydantic"),
    *("rich", "safetensors", "setproctitle", "tokenizers", "tqdm", "transformers", "triton", "uvloop", "xxhash", "zmq"),
)
VERSIONS = ("torch", "triton", "transformers", "numpy")
SIZE = 8192


def main() -> None:
    missing = [name for name in NEEDED if not _importable(name)]
    versions = {name: importlib.import_module(name).__version__ for name in VERSIONS if name not in missing}
    print(json.dumps({"case": "installed", "python": platform.python_version(), "cuda": torch.version.cuda} | versions))
    if missing:
        sys.exit(f"missing: {' '.join(missing)}; for a machine without network see benchmarks/gpu/wheels.py")
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    free, total = torch.cuda.mem_get_info()
    found = torch.cuda.get_device_properties(0)
    print(
        json.dumps(
            {"case": found.name, "SMs": found.multi_processor_count, "GiB": total >> 30, "free GiB": free >> 30}
        ),
        flush=True,
    )
    print(json.dumps({"case": "copy", "TB/s": _copy_rate()}), flush=True)
    a, b = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    print(json.dumps({"case": "bf16 product", "TFLOP/s": _rate(lambda: a @ b)}), flush=True)
    print(json.dumps({"case": "fp8 block-wise product", "TFLOP/s": _fp8_rate()}), flush=True)


def _copy_rate() -> float:
    """Read and write counted."""
    one = torch.randint(256, (4 << 30,), dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    return round(2 * one.nbytes / _seconds(lambda: other.copy_(one)) * 1e-12, 2)


def _fp8_rate() -> float | None:
    """Of the library's product, or None where it is not there or wrong."""
    from tandem_kernels.fp8_gemm import BlockScales
    from tandem_kernels.fp8_quantize import fp8_quantize_padded
    from tandem_kernels.fp8_scaled_mm import library_weight, product, supported

    if not supported(torch.device("cuda"), torch.bfloat16):
        return None
    x = fp8_quantize_padded(torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16))
    weight_NK = torch.randn(SIZE, SIZE, device="cuda").to(torch.float8_e4m3fn)
    blocks = SIZE // 128
    weight = library_weight(weight_NK, BlockScales.of(torch.rand(blocks, blocks, device="cuda"), SIZE))
    assert weight is not None
    return _rate(lambda: product(x, weight, torch.bfloat16))


def _rate(run: Callable[[], object]) -> float:
    return round(2 * SIZE**3 / _seconds(run) * 1e-12, 1)


def _seconds(run: Callable[[], object], count: int = 10) -> float:
    for _ in range(3):
        run()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(count):
        run()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) * 1e-3 / count


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
