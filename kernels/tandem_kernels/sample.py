"""Logits to token ids: penalties, temperature, min-p, top-k, top-p and a seeded draw, without sorting the vocabulary.

One program per row. Every truncation keeps the tokens from some logit upwards, so all three are one `floor`. The
floors of top-k and top-p are found by descending through the float's bits, two at a time: 16 passes over a row that
lies in the L2 cache. The draw inverts the cumulated distribution in the vocabulary's order, in fp64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from tandem_kernels.launch import Launch, power_of_2

MAX_BLOCK = 8192
BLOCK_PER_WARP = 512
"""More would spill registers on Ampere."""


class SamplingTable(NamedTuple):
    """Each row's parameters, on the device."""

    numbers_R6: torch.Tensor
    """fp32: temperature (0: greedy), top-p (1: all), min-p (0: all), repetition, presence and frequency penalty."""
    integers_R4: torch.Tensor
    """int64: top-k (0: all), seed, output index, row of `history_SV` (-1: none, and no penalties)."""


class Sampled(NamedTuple):
    ids_R: torch.Tensor
    """int64."""
    shaped_RV: torch.Tensor
    """fp32: the logits with penalties and before temperature, as log-probabilities are reported of."""


def sample(logits_RV: torch.Tensor, table: SamplingTable, history_SV: torch.Tensor) -> Sampled:
    """Samples every row, and adds what was sampled to its history.

    history_SV: int32, 2 * occurrences in the output + 1 if in the prompt. Rows of equal (seed, output index) and equal
    logits give equal ids, whatever the batch: the uniform number is SplitMix64's (Steele et al., OOPSLA 2014).
    A token that ties with the last one that a truncation keeps is kept; greedy ties go to the smallest id.
    """
    found = Sampled(
        torch.empty(len(logits_RV), dtype=torch.int64, device=logits_RV.device),
        torch.empty(logits_RV.shape, dtype=torch.float32, device=logits_RV.device),
    )
    launch(logits_RV, table, history_SV, found).run()
    return found


def launch(logits_RV: torch.Tensor, table: SamplingTable, history_SV: torch.Tensor, found: Sampled) -> Launch:
    rows, vocab = logits_RV.shape
    assert logits_RV.stride(1) == 1
    assert history_SV.shape[1] == vocab
    assert all(x.is_contiguous() for x in (*table, history_SV))
    block = min(MAX_BLOCK, power_of_2(vocab))
    return Launch(
        sample_kernel,
        (rows,),
        {
            "logits": logits_RV,
            "numbers": table.numbers_R6,
            "integers": table.integers_R4,
            "history": history_SV,
            "shaped": found.shaped_RV,
            "ids": found.ids_R,
            "logits_row": logits_RV.stride(0),
            "vocab": vocab,
        },
        {"BLOCK": block},
        num_warps=max(4, block // BLOCK_PER_WARP),
    )


@triton.jit
def sample_kernel(  # type: ignore[no-untyped-def]
    logits,
    numbers,
    integers,
    history,
    shaped,
    ids,
    logits_row,
    vocab,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(numbers + row * 6)
    top_p = tl.load(numbers + row * 6 + 1)
    min_p = tl.load(numbers + row * 6 + 2)
    top_k = tl.load(integers + row * 4)
    history_row = tl.load(integers + row * 4 + 3)
    seen = history + history_row * vocab
    shaped += row * vocab

    top_B = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, vocab, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row * logits_row + at, mask=at < vocab, other=float("-inf")).to(tl.float32)
        if history_row >= 0:
            x = penalised(x, tl.load(seen + at, mask=at < vocab, other=0), numbers + row * 6 + 3)
        tl.store(shaped + at, x, mask=at < vocab)
        top_B = tl.maximum(top_B, x)
    # The passes below read what other threads wrote.
    tl.debug_barrier()
    top = tl.max(top_B)

    if temperature > 0:
        floor = top + tl.log(min_p) * temperature if min_p > 0 else float("-inf")
        if (top_k > 0) & (top_k < vocab):
            floor = tl.maximum(floor, descend(shaped, vocab, top, 0.0, top_k.to(tl.float32), floor, False, BLOCK))
        if top_p < 1:
            total = mass_from(shaped, vocab, top, 1 / temperature, floor, BLOCK)
            wanted = (top_p * total).to(tl.float32)
            floor = tl.maximum(floor, descend(shaped, vocab, top, 1 / temperature, wanted, floor, True, BLOCK))
        uniform = uniform_of(tl.load(integers + row * 4 + 1), tl.load(integers + row * 4 + 2))
        token = draw(shaped, vocab, top, 1 / temperature, floor, uniform, BLOCK)
    else:
        token = draw(shaped, vocab, top, 1.0, top, tl.zeros((), tl.float64), BLOCK)
    tl.store(ids + row, token.to(tl.int64))
    if history_row >= 0:
        tl.store(seen + token, tl.load(seen + token) + 2)


@triton.jit
def penalised(x, seen, penalties):  # type: ignore[no-untyped-def]
    """Repetition (arXiv:1909.05858) over prompt and output, presence and frequency over the output."""
    repetition = tl.load(penalties)
    presence = tl.load(penalties + 1)
    frequency = tl.load(penalties + 2)
    count = (seen >> 1).to(tl.float32)
    x = tl.where(seen > 0, tl.where(x > 0, x / repetition, x * repetition), x)
    return x - frequency * count - tl.where(count > 0, presence, 0.0)


@triton.jit
def uniform_of(seed, output_index):  # type: ignore[no-untyped-def]
    """In [0, 1), 52 bits, fp64."""
    mixed = mix(mix(seed.to(tl.uint64, bitcast=True)) ^ output_index.to(tl.uint64, bitcast=True))
    return (mixed >> 12).to(tl.float64) * 2.220446049250313e-16


@triton.jit
def mix(x):  # type: ignore[no-untyped-def]
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def weights(shaped, vocab, first, top, inverse_temperature, floor, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = first + tl.arange(0, BLOCK)
    x = tl.load(shaped + at, mask=at < vocab, other=float("-inf"))
    return tl.where((x >= floor) & (at < vocab), tl.exp((x - top) * inverse_temperature), 0.0)


@triton.jit
def mass_from(shaped, vocab, top, inverse_temperature, floor, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the tokens from `floor` upwards, the most likely one's being 1; fp64."""
    total = tl.zeros((), tl.float64)
    for first in range(0, vocab, BLOCK):
        weight_B = weights(shaped, vocab, first, top, inverse_temperature, floor, BLOCK)
        total += tl.sum(weight_B.to(tl.float64))
    return total


@triton.jit
def descend(  # type: ignore[no-untyped-def]
    shaped, vocab, top, inverse_temperature, wanted, floor, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest logit from which upwards lie `wanted` tokens, or that much weight; -inf where all fall short."""
    key = tl.zeros((), tl.uint32)
    for i in range(16):
        step = tl.full((), 1, tl.uint32) << (30 - 2 * i)
        low, middle, high = logit_of(key + step), logit_of(key + 2 * step), logit_of(key + 3 * step)
        low_B = tl.zeros((BLOCK,), tl.float32)
        middle_B = tl.zeros((BLOCK,), tl.float32)
        high_B = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, vocab, BLOCK):
            at = first + tl.arange(0, BLOCK)
            x = tl.load(shaped + at, mask=at < vocab, other=float("-inf"))
            x = tl.where(x >= floor, x, float("-inf"))
            weight_B = tl.exp((x - top) * inverse_temperature) if WEIGHTED else tl.where(at < vocab, 1.0, 0.0)
            low_B += tl.where(x >= low, weight_B, 0.0)
            middle_B += tl.where(x >= middle, weight_B, 0.0)
            high_B += tl.where(x >= high, weight_B, 0.0)
        reached = (tl.sum(low_B) >= wanted).to(tl.uint32) + (tl.sum(middle_B) >= wanted).to(tl.uint32)
        key += (reached + (tl.sum(high_B) >= wanted).to(tl.uint32)) * step
    # Below -inf's own key lie only negative NaNs.
    return tl.where(key <= 0x007FFFFF, float("-inf"), logit_of(key))


@triton.jit
def logit_of(key):  # type: ignore[no-untyped-def]
    """The float at `key` of an unsigned order that agrees with that of floats."""
    bits = tl.where(key >= 0x80000000, key ^ 0x80000000, ~key)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def draw(shaped, vocab, top, inverse_temperature, floor, uniform, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first token at which the weight cumulated in the vocabulary's order passes `uniform` of the whole."""
    target = uniform * mass_from(shaped, vocab, top, inverse_temperature, floor, BLOCK)
    first = 0
    before = tl.zeros((), tl.float64)
    weight_B = weights(shaped, vocab, first, top, inverse_temperature, floor, BLOCK).to(tl.float64)
    here = tl.sum(weight_B)
    while (before + here <= target) & (first + BLOCK < vocab):
        before += here
        first += BLOCK
        weight_B = weights(shaped, vocab, first, top, inverse_temperature, floor, BLOCK).to(tl.float64)
        here = tl.sum(weight_B)
    at = tl.arange(0, BLOCK)
    passed = tl.min(tl.where(before + tl.cumsum(weight_B, 0) > target, at, BLOCK))
    # The scan may round to less than the sum did.
    last = tl.max(tl.where(weight_B > 0, at, 0))
    return first + tl.minimum(passed, last)
