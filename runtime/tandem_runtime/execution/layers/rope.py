"""Rotary position embedding (arXiv:2104.09864) with linear, YaRN (arXiv:2309.00071) and Llama 3 scaling."""

from __future__ import annotations

import math
from typing import Any

import torch


class Rope:
    """Cosines and sines of a step's positions, made once for all layers."""

    def __init__(self, parameters: dict[str, Any], head_dim: int, *, dtype: torch.dtype, device: str) -> None:
        inv_freq, self.attention_factor = frequencies(parameters, head_dim)
        self.inv_freq = inv_freq.to(device)
        self.dtype = dtype

    def tables(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin: [T, 1, head_dim] each; the first half of sin is negated, as `rotate` wants it."""
        angles = positions_T.to(torch.float32)[:, None, None] * self.inv_freq
        cos = angles.cos().mul_(self.attention_factor)
        sin = angles.sin().mul_(self.attention_factor)
        return torch.cat((cos, cos), -1).to(self.dtype), torch.cat((-sin, sin), -1).to(self.dtype)

    def half_tables(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin: fp32 [T, head_dim / 2] each."""
        angles_TR = positions_T.to(torch.float32)[:, None] * self.inv_freq
        return angles_TR.cos().mul_(self.attention_factor), angles_TR.sin().mul_(self.attention_factor)


def rotate_(x_TND: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotates the halves of every head in place; `x_TND` may be a strided view."""
    swapped = x_TND.roll(x_TND.shape[-1] // 2, -1)
    torch.addcmul(x_TND * cos, swapped, sin, out=x_TND)


def frequencies(parameters: dict[str, Any], head_dim: int) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [head_dim / 2] in fp32, and the factor on cosines and sines (YaRN's temperature)."""
    base = float(parameters["rope_theta"])
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    inv_freq: torch.Tensor = 1.0 / torch.pow(base, exponents)
    match parameters["rope_type"]:
        case "linear":
            return inv_freq / parameters["factor"], 1.0
        case "llama3":
            return _llama3(inv_freq, parameters), 1.0
        case "yarn":
            return _yarn(inv_freq, parameters, base, head_dim), _yarn_attention_factor(parameters)
    return inv_freq, 1.0


def _llama3(inv_freq: torch.Tensor, p: dict[str, Any]) -> torch.Tensor:
    low, high = p["low_freq_factor"], p["high_freq_factor"]
    original: float = p["original_max_position_embeddings"]
    factor: float = p["factor"]
    wavelength = 2 * math.pi / inv_freq
    smooth: torch.Tensor = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - smooth) * inv_freq / factor + smooth * inv_freq


def _yarn(inv_freq: torch.Tensor, p: dict[str, Any], base: float, head_dim: int) -> torch.Tensor:
    original: float = p["original_max_position_embeddings"]

    def dimension_of(rotations: float) -> float:
        return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = dimension_of(p.get("beta_fast") or 32.0)
    high = dimension_of(p.get("beta_slow") or 1.0)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    factor: float = p["factor"]
    return inv_freq / factor * ramp + inv_freq * (1 - ramp)


def _yarn_attention_factor(p: dict[str, Any]) -> float:
    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(p["factor"]) + 1.0 if p["factor"] > 1 else 1.0

    if p.get("mscale") and p.get("mscale_all_dim"):
        return temperature(p["mscale"]) / temperature(p["mscale_all_dim"])
    return temperature(1.0)
