from __future__ import annotations

import torch


def penalise(
    logits_V: torch.Tensor, history_V: torch.Tensor, *, repetition: float, presence: float, frequency: float
) -> torch.Tensor:
    count_V = history_V // 2
    scaled_V = torch.where(logits_V > 0, logits_V / repetition, logits_V * repetition)
    logits_V = torch.where(history_V > 0, scaled_V, logits_V)
    return logits_V - frequency * count_V - presence * (count_V > 0)


def distribution(logits_V: torch.Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """[V]: the probabilities that a token is drawn with; min-p, top-k and top-p apply in that order."""
    x_V = logits_V / temperature
    if min_p > 0.0:
        x_V = x_V.masked_fill(x_V < x_V.max() + torch.tensor(min_p, dtype=x_V.dtype).log(), -torch.inf)
    if 0 < top_k < len(x_V):
        x_V = x_V.masked_fill(x_V < x_V.topk(top_k).values[-1], -torch.inf)
    if top_p < 1.0:
        best_V = x_V.sort(descending=True).values
        short = int((torch.softmax(best_V, 0).cumsum(0) < top_p).sum())
        x_V = x_V.masked_fill(x_V < best_V[min(short, len(x_V) - 1)], -torch.inf)
    return torch.softmax(x_V, 0)


def draw(probability_V: torch.Tensor, uniform: float) -> int:
    """The first token at which the probability, cumulated in the vocabulary's order, passes `uniform`."""
    cumulated_V = probability_V.cumsum(0)
    return int(torch.searchsorted(cumulated_V, uniform * cumulated_V[-1], right=True))
