"""What must agree before two processes exchange KV pages."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from tandem_contract.handoff import LayoutFingerprint

from tandem_runtime.execution.safetensors_file import SafetensorsFile, weight_files
from tandem_runtime.execution.settings import ExecutionConfig


def fingerprint(config: ExecutionConfig) -> LayoutFingerprint:
    """Raises `StartupError` when the weight files cannot be read."""
    return LayoutFingerprint(
        model=_model_digest(config),
        kv_dtype=config.layout.dtype,
        num_layers=config.model.num_layers,
        num_kv_heads=config.model.num_kv_heads,
        head_dim=config.model.head_dim,
        page_size=config.page_size,
        rope=json.dumps(config.model.rope, sort_keys=True, separators=(",", ":")),
        tensor_parallel=config.tensor_parallel_size,
    )


def _model_digest(config: ExecutionConfig) -> str:
    """Over the model's shape and, in place of gigabytes of weights, each file's name, size and header."""
    digest = hashlib.blake2b(digest_size=16)
    shape = asdict(config.model)
    # Compared on its own, so that a difference is named; and not the weights' business.
    for name in ("rope", "max_position_embeddings", "eos_token_ids", "dtype"):
        del shape[name]
    if config.model.moe is not None:
        shape["moe"]["dense_layers"] = sorted(config.model.moe.dense_layers)
    digest.update(json.dumps([shape, config.dtype], sort_keys=True).encode())
    if config.load_format == "dummy":
        digest.update(f"dummy {config.seed}".encode())
        return digest.hexdigest()
    for path in weight_files(config.folder):
        file = SafetensorsFile(path)
        file.close()
        digest.update(f"{path.name} {path.stat().st_size} ".encode() + file.header)
    return digest.hexdigest()
