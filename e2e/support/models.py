"""The small model that the cluster serves, and what it must answer."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import torch
from support.reference import reference_model
from support.tiny_models import build_tiny_model
from transformers import AutoTokenizer

PROMPT_TOKENS, ANSWER_TOKENS = 300, 48
"""Long enough to be handed over, and for an answer to be under way when something happens to its pods."""


def build_served_model(folder: Path) -> Path:
    """Always the same weights."""
    return build_tiny_model(folder, "qwen3", seed=7, max_position_embeddings=2048)


@torch.inference_mode()
def cases(folder: Path, served_name: str, count: int = 12) -> list[dict[str, Any]]:
    """`body` of a completion request and the `text` of its right answer, which transformers computes here."""
    model, tokenizer = reference_model(folder), AutoTokenizer.from_pretrained(folder)
    made = []
    for index in range(count):
        prompt = "".join(random.Random(index).choices(string.ascii_lowercase + " ", k=PROMPT_TOKENS))
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        answer = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER_TOKENS, do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[0, ids.shape[1] :]  # fmt: skip
        body = {
            "model": served_name, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": True,
        }  # fmt: skip
        made.append({"body": body, "text": tokenizer.decode(answer, skip_special_tokens=True)})
    return made
