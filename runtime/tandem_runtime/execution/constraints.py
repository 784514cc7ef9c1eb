"""What the next token of some sequences may be: whoever knows the grammar says so, the samplers obey."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.upload import to_device

Mask = NDArray[np.uint8]
"""A bit for each token, lowest first; set where it may come next."""


class Constraints(Protocol):
    """`start` and `advance` return at once: the work behind them is done while the device computes the next step."""

    def start(self, slot: int, sampling: SamplingParams, output_token_ids: list[int]) -> None:
        """A sequence takes the slot; `output_token_ids` were sampled before."""

    def advance(self, slots: list[int], token_ids: Callable[[], list[int]]) -> None:
        """A step samples one token for each of `slots`; `token_ids` waits for the device."""

    def allowed(self, slot: int) -> Mask | None:
        """Waits for what was started; valid until `advance`. None: any token may come."""

    def failure(self, slot: int) -> str | None:
        """As `allowed`: why the sequence cannot go on, if it cannot."""


def forbid_(logits_RV: torch.Tensor, masks: Sequence[Mask | None]) -> None:
    """Sets what rows with a mask may not sample to -inf, in place."""
    constrained = {r: mask for r, mask in enumerate(masks) if mask is not None}
    if not constrained:
        return
    device = logits_RV.device
    bits_CB = to_device(torch.from_numpy(np.stack(list(constrained.values()))), device)
    bit_8 = to_device(torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8), device)
    forbidden_CV = ((bits_CB[:, :, None] & bit_8) == 0).flatten(1)[:, : logits_RV.shape[1]]
    if len(constrained) == len(logits_RV):
        logits_RV.masked_fill_(forbidden_CV, -torch.inf)
    else:
        at = to_device(torch.tensor(list(constrained)), device)
        logits_RV[at] = logits_RV[at].masked_fill_(forbidden_CV, -torch.inf)


def allows_any_but(mask: Mask, token_ids: Sequence[int]) -> bool:
    rest = mask.copy()
    for token_id in token_ids:
        rest[token_id >> 3] &= ~(1 << (token_id & 7)) & 0xFF
    return bool(rest.any())
