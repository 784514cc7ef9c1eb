"""Where exact prompt lengths come from: token ids, a local tokenizer, or the server's `/tokenize`."""

from __future__ import annotations

import random
from typing import Any

from tandem_runtime.bench.errors import BenchError
from tandem_runtime.bench.serve.client import Client
from tandem_runtime.bench.serve.options import Endpoint, Options
from tandem_runtime.bench.serve.workload import CountTokens, PromptSource, TextPrompts, TokenIdPrompts


async def prompt_source(options: Options, client: Client, model: str, *, seed: int) -> PromptSource:
    """Raises `BenchError` when the tokenizer cannot be loaded or the server has none to offer."""
    rng = random.Random(f"{seed}/shared prefix")
    shared = options.shared_prefix_len
    if options.tokenizer is None and options.endpoint == "completions":
        return TokenIdPrompts(options.token_ids, shared_prefix=rng.choices(options.token_ids, k=shared))
    if options.tokenizer is not None:
        count = local_count(options.tokenizer, options.endpoint)
    else:

        async def count(text: str) -> int:
            return await client.count_tokens(model, text)

    prefix = await TextPrompts(count).text(rng, shared) if shared else ""
    return TextPrompts(count, shared_prefix=prefix)


def local_count(name: str, endpoint: Endpoint) -> CountTokens:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise BenchError(f"--tokenizer {name}: {str(error).splitlines()[0]}") from error
    if endpoint == "chat" and not tokenizer.chat_template:
        raise BenchError(f"--tokenizer {name} has no chat template; use --endpoint completions")

    async def count(text: str) -> int:
        if endpoint == "completions":
            return len(tokenizer(text).input_ids)
        turn = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return len(tokenizer(prompt, add_special_tokens=False).input_ids)

    return count
