"""A tiny checkpoint as Qwen's official FP8 ones are: projections in e4m3 beside `weight_scale_inv`, the rest plain."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK = 128


def to_fp8(source: Path, target: Path, plain: Path) -> None:
    """Writes `target`, and into `plain` the same numbers in fp32: what a reader must come to."""
    quantised: dict[str, torch.Tensor] = {}
    widened: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        quantised[name] = widened[name] = tensor
        if name.endswith("_proj.weight"):
            fp8, scales = _quantise(tensor.float())
            quantised[name], quantised[f"{name}_scale_inv"] = fp8, scales
            widened[name] = _widen(fp8, scales)
    config = json.loads((source / "config.json").read_text())
    described = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
    }
    for folder, tensors, changes in ((target, quantised, {"quantization_config": described}), (plain, widened, {})):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config | changes))


def _quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    scales = torch.empty(rows, columns)
    found = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for r in range(rows):
        for c in range(columns):
            block = weight[r * BLOCK : (r + 1) * BLOCK, c * BLOCK : (c + 1) * BLOCK]
            scales[r, c] = block.abs().max() / 448
            found[r * BLOCK : (r + 1) * BLOCK, c * BLOCK : (c + 1) * BLOCK] = (block / scales[r, c]).to(found.dtype)
    return found, scales


def _widen(fp8: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    wide = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return fp8.float() * wide[: fp8.shape[0], : fp8.shape[1]]
