"""What a whole engine (loop, scheduler, handoff coordinators) on a token model is told."""

from __future__ import annotations

from typing import Literal

from support.token_model import PAGE_SIZE, VOCAB_SIZE
from tandem_contract.handoff import LayoutFingerprint
from tandem_runtime.engine.assembly import EngineConfig
from tandem_runtime.scheduling import SchedulerConfig

Role = Literal["prefill", "decode"]


def token_fingerprint(model: str = "token-model") -> LayoutFingerprint:
    return LayoutFingerprint(
        model=model,
        kv_dtype="float32",
        num_layers=1,
        num_kv_heads=1,
        head_dim=1,
        page_size=PAGE_SIZE,
        rope="",
        tensor_parallel=1,
    )


def token_engine_config(
    role: Role,
    name: str,
    *,
    url: str,
    incarnation: str,
    max_num_batched_tokens: int,
    lease_s: float,
    probe_interval_s: float = 1.0,
    model: str = "token-model",
    **scheduler: int,
) -> EngineConfig:
    """`scheduler`: the fields of `SchedulerConfig` that are not the token model's own."""
    fingerprint = token_fingerprint(model)
    return EngineConfig(
        name=name,
        role=role,
        url=url,
        incarnation=incarnation,
        fingerprint=fingerprint,
        scheduler=SchedulerConfig(
            page_size=PAGE_SIZE,
            max_num_batched_tokens=max_num_batched_tokens,
            max_prefill_tokens_with_decodes=max_num_batched_tokens,
            enable_prefix_caching=True,
            cache_root=bytes.fromhex(fingerprint.digest()),
            **scheduler,
        ),
        vocab_size=VOCAB_SIZE,
        handoff_lease_s=lease_s,
        probe_interval_s=probe_interval_s,
    )
