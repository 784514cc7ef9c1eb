from __future__ import annotations

import torch

from tandem_kernels.reference.pages import tokens_of


def paged_decode(
    q_BND: torch.Tensor,
    k_PHSD: torch.Tensor,
    v_PHSD: torch.Tensor,
    page_table_SP: torch.Tensor,
    slots_B: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    out_BND = torch.zeros_like(q_BND)
    for row, (slot, length) in enumerate(zip(slots_B.tolist(), lengths_B.tolist(), strict=True)):
        if length == 0:
            continue
        group = q_BND.shape[1] // k_PHSD.shape[1]
        k_NTD = tokens_of(k_PHSD, page_table_SP[slot], length).repeat_interleave(group, 0)
        v_NTD = tokens_of(v_PHSD, page_table_SP[slot], length).repeat_interleave(group, 0)
        weight_NT = torch.softmax(torch.einsum("nd,ntd->nt", q_BND[row], k_NTD) * scale, -1)
        out_BND[row] = torch.einsum("nt,ntd->nd", weight_NT, v_NTD)
    return out_BND
