from __future__ import annotations

import torch

from tandem_kernels.reference.pages import tokens_of


def paged_prefill(
    q_TND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    chunks_C4: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    out_TND = torch.zeros_like(q_TND)
    group = q_TND.shape[1] // k_PHSD.shape[1]
    for slot, first_row, start, count in chunks_C4.tolist():
        k_NtD = tokens_of(k_PHSD, page_table_SP[slot], start + count).repeat_interleave(group, 0)
        v_NtD = tokens_of(v_PHSD, page_table_SP[slot], start + count).repeat_interleave(group, 0)
        rows = slice(first_row, first_row + count)
        scores_Nmt = torch.einsum("mnd,ntd->nmt", q_TND[rows], k_NtD) * scale
        visible_mt = torch.ones(count, start + count, dtype=torch.bool, device=q_TND.device).tril(start)
        weight_Nmt = torch.softmax(scores_Nmt.masked_fill(~visible_mt, float("-inf")), -1)
        out_TND[rows] = torch.einsum("nmt,ntd->mnd", weight_Nmt, v_NtD)
    return out_TND
