"""The sampler's arithmetic: pure functions over [rows, vocab] tensors and numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tandem_runtime.core.sampling import MAX_LOGPROBS, TokenLogprobs

_MASK64 = (1 << 64) - 1
NUCLEUS_CANDIDATES = 256
"""Sorted first when a nucleus is sought; nearly always enough, and far cheaper than sorting the vocabulary."""


def uniform(seed: int, output_index: int) -> float:
    """In [0, 1), of (seed, output index) alone: SplitMix64 (Steele et al., OOPSLA 2014) over both, 52 bits."""
    return (_mix(_mix(seed & _MASK64) ^ output_index) >> 12) * 2.0**-52


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def penalise_(
    logits_V: torch.Tensor,
    prompt_V: torch.Tensor,
    counts_V: torch.Tensor,
    *,
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    """Repetition over prompt and output (arXiv:1909.05858), presence and frequency over the output; in place.

    `prompt_V`: bool, whether a token occurs in the prompt; `counts_V`: occurrences in the output.
    """
    if repetition != 1.0:
        seen_V = prompt_V | (counts_V > 0)
        scaled_V = torch.where(logits_V > 0, logits_V / repetition, logits_V * repetition)
        logits_V.copy_(torch.where(seen_V, scaled_V, logits_V))
    if presence != 0.0 or frequency != 0.0:
        logits_V -= frequency * counts_V + presence * (counts_V > 0)


def truncate_(logits_RV: torch.Tensor, *, top_k: list[int], top_p: list[float], min_p: list[float]) -> None:
    """Masks what min-p, top-k and top-p leave out, in that order, each over what is left; in place.

    `logits_RV` are already divided by the temperature. A token that ties with the last one kept is kept.
    """
    device = logits_RV.device
    if any(p > 0.0 for p in min_p):
        floor_R = logits_RV.amax(-1) + torch.tensor(min_p, device=device).log()
        logits_RV.masked_fill_(logits_RV < floor_R[:, None], -torch.inf)
    vocab = logits_RV.shape[1]
    limited = [row for row, k in enumerate(top_k) if 0 < k < vocab]
    if limited:
        rows = torch.tensor(limited, device=device)
        wanted = torch.tensor([top_k[row] - 1 for row in limited], device=device)
        best_RK = logits_RV[rows].topk(int(wanted.max()) + 1).values
        _keep_from_(logits_RV, rows, best_RK.gather(1, wanted[:, None]))
    limited = [row for row, p in enumerate(top_p) if p < 1.0]
    if limited:
        rows = torch.tensor(limited, device=device)
        mass = torch.tensor([top_p[row] for row in limited], device=device)
        _keep_from_(logits_RV, rows, nucleus_threshold(logits_RV[rows], mass))


def nucleus_threshold(logits_RV: torch.Tensor, mass_R: torch.Tensor) -> torch.Tensor:
    """[R, 1]: the smallest logit of the smallest set of most likely tokens whose probability reaches `mass_R`."""
    count = min(NUCLEUS_CANDIDATES, logits_RV.shape[1])
    best_RK = logits_RV.topk(count).values
    # The logsumexp; torch's own takes 20 times as long on the CPU where most logits are -inf.
    total_R1 = best_RK[:, :1] - torch.softmax(logits_RV, -1).amax(-1, keepdim=True).log()
    cumulated_RK = (best_RK - total_R1).exp().cumsum(-1)
    if count < logits_RV.shape[1] and bool((cumulated_RK[:, -1] < mass_R).any()):
        best_RK = logits_RV.sort(dim=-1, descending=True).values
        cumulated_RK = (best_RK - total_R1).exp().cumsum(-1)
    # The first place where the mass is reached; rounding may leave the sum just short of it everywhere.
    last_R1 = (cumulated_RK < mass_R[:, None]).sum(-1, keepdim=True).clamp_(max=best_RK.shape[1] - 1)
    return best_RK.gather(1, last_R1)


def _keep_from_(logits_RV: torch.Tensor, rows: torch.Tensor, threshold_R1: torch.Tensor) -> None:
    chosen = logits_RV[rows]
    logits_RV[rows] = chosen.masked_fill_(chosen < threshold_R1, -torch.inf)


def draw(logits_RV: torch.Tensor, uniforms_R: torch.Tensor) -> torch.Tensor:
    """int64 [R]: the token at which the probability cumulated in vocabulary order passes the uniform.

    Always one of the vocabulary, whatever the logits: +inf counts as the largest number, NaN and -inf as the smallest.
    """
    finite_RV = logits_RV.nan_to_num(nan=torch.finfo(logits_RV.dtype).min)
    cumulated_RV = torch.softmax(finite_RV, dim=-1).double().cumsum_(-1)
    targets_R1 = (uniforms_R * cumulated_RV[:, -1])[:, None]
    ids_R1 = torch.searchsorted(cumulated_RV, targets_R1, right=True)
    return ids_R1[:, 0]


def token_logprobs(logits_RV: torch.Tensor, ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    """For each row the token's log-probability, its rank, and the `counts` most likely tokens."""
    ids_R = torch.tensor(ids, device=logits_RV.device)
    return describe(logprob_tensors(logits_RV, ids_R, max(counts)), ids, counts)


class LogprobTensors(NamedTuple):
    chosen_R: torch.Tensor
    ranks_R: torch.Tensor
    best_RK: torch.Tensor
    best_ids_RK: torch.Tensor


def logprob_tensors(logits_RV: torch.Tensor, ids_R: torch.Tensor, width: int) -> LogprobTensors:
    """The device's part of `token_logprobs`: nothing here waits for it. `width`: most alternatives of any row.

    At least as many are looked for as a request may want: which of equally likely tokens are found depends on how many
    are, and must not depend on what another row wants.
    """
    logprobs_RV = torch.log_softmax(logits_RV.float(), dim=-1)
    chosen_R1 = logprobs_RV.gather(1, ids_R[:, None])
    best = logprobs_RV.topk(min(max(width, MAX_LOGPROBS), logits_RV.shape[1]))
    return LogprobTensors(chosen_R1[:, 0], (logprobs_RV > chosen_R1).sum(-1) + 1, best.values, best.indices)


def describe(found: LogprobTensors, ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    """The host's part of `token_logprobs`."""
    ranks, values, tokens = found.ranks_R.tolist(), found.best_RK.tolist(), found.best_ids_RK.tolist()
    return [
        TokenLogprobs(ids[r], value, ranks[r], list(zip(tokens[r], values[r], strict=True))[: counts[r]])
        for r, value in enumerate(found.chosen_R.tolist())
    ]
