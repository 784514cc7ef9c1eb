"""What two pods must have in common for a stream of one to go on at the other as it would have gone on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import metadata

from tandem_runtime.engine.client import EngineInfo
from tandem_runtime.server.sampling_defaults import SamplingDefaults
from tandem_runtime.text.tokenizer import Tokenizer


def digest(info: EngineInfo, tokenizer: Tokenizer, *, splits_reasoning: bool, defaults: SamplingDefaults) -> str:
    """Hex. Over everything between a client's body, the tokens so far and the rest of the answer.

    What the first pod decided for one request (its seed, its time) is in the stream's records instead.
    """
    everything = {
        # Another version may read a request, split a thought or parse a call in another way.
        "version": metadata.version("tandem-serving"),
        "weights": info.fingerprint.digest(),
        "arithmetic": info.arithmetic,
        "tokenizer": tokenizer.digest,
        "splits_reasoning": splits_reasoning,
        "sampling": asdict(defaults),
        "max_model_len": info.max_model_len,
        "vocab_size": info.vocab_size,
        "eos_token_ids": info.eos_token_ids,
    }
    return hashlib.blake2b(json.dumps(everything, sort_keys=True).encode(), digest_size=16).hexdigest()
