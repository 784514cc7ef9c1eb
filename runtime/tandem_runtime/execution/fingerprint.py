"""What must agree before two processes exchange KV pages, or one goes on with the other's answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tandem_contract.handoff import LayoutFingerprint

from tandem_runtime.execution.safetensors_file import SafetensorsFile, weight_files
from tandem_runtime.execution.settings import ExecutionConfig

SAMPLES_PER_FILE = 16
SAMPLE_BYTES = 4096


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


def arithmetic(config: ExecutionConfig) -> str:
    """Where it differs the same weights round differently, so that a near tie may turn.

    The machine's own kind is no part of it.
    """
    ranks = f"tensor parallel {config.tensor_parallel_size}"
    return f"{config.backend}, {ranks}, experts {'whole' if config.expert_parallel else 'shared'}"


def _model_digest(config: ExecutionConfig) -> str:
    """Over the model's shape and, in place of gigabytes of weights, each file's name, size, header and samples.

    The samples tell apart fine-tunes of one base model, whose files are alike in everything else.
    """
    digest = hashlib.blake2b(digest_size=16)
    shape = asdict(config.model)
    # Compared on its own, so that a difference is named; and not the weights' business.
    for name in ("rope", "max_position_embeddings", "eos_token_ids", "dtype"):
        del shape[name]
    if config.model.moe is not None:
        shape["moe"]["dense_layers"] = sorted(config.model.moe.dense_layers)
    digest.update(json.dumps([shape, config.dtype, config.quantization], sort_keys=True).encode())
    if config.load_format == "dummy":
        digest.update(f"dummy {config.seed}".encode())
        return digest.hexdigest()
    for path in weight_files(config.folder):
        file = SafetensorsFile(path)
        file.close()
        digest.update(f"{path.name} {path.stat().st_size} ".encode() + file.header)
        for block in _samples(path):
            digest.update(block)
    return digest.hexdigest()


def _samples(path: Path) -> Iterator[bytes]:
    """Evenly spaced blocks of a file, its end included."""
    last = max(0, path.stat().st_size - SAMPLE_BYTES)
    with path.open("rb") as weights:
        for index in range(SAMPLES_PER_FILE):
            weights.seek(last * index // (SAMPLES_PER_FILE - 1))
            yield weights.read(SAMPLE_BYTES)
