"""transformers as the reference: what a checkpoint's distributions should be."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


@lru_cache(maxsize=16)
def reference_model(folder: Path, rope_parameters: tuple[tuple[str, Any], ...] = ()) -> Any:
    """`rope_parameters`: pairs that go over the checkpoint's own."""
    kwargs: dict[str, Any] = {"rope_parameters": dict(rope_parameters)} if rope_parameters else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **kwargs).eval()


@torch.inference_mode()
def reference_logits(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """[tokens, vocab] in fp32."""
    logits: torch.Tensor = model(torch.tensor([list(token_ids)])).logits[0]
    return logits


def reference_logprobs(model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """[tokens, vocab]: row i is the distribution of the token after `token_ids[: i + 1]`."""
    return reference_logits(model, token_ids).log_softmax(-1)
