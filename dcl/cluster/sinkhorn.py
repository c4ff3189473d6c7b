"""Balanced soft assignment: the Sinkhorn-Knopp iteration on prototype scores."""

import torch
from torch import Tensor

from dcl.runtime.dist import all_max, all_sum


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft codes that distribute the batch evenly over the prototypes.

    scores (B,K), any float dtype and any finite values; returns (B,K) float32 whose rows sum to 1
    and whose columns sum to about B/K (exactly in the limit of many iterations). No gradient.
    With several processes the batch is the union of theirs. `iterations=0` is the plain
    softmax(scores / epsilon), which does not balance.
    Raises ValueError: scores not (B,K), epsilon <= 0, iterations < 0.
    SwAV (Caron et al. 2020), Eq. 3-5 and the appendix's pseudo-code; chapter swav.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be (batch, prototypes); got shape {tuple(scores.shape)}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0; got {epsilon}")
    if iterations < 0:
        raise ValueError(f"iterations must be 0 or more; got {iterations}")
    with torch.autocast(scores.device.type, enabled=False):
        # exp(s / .05) overflows float16 at s = .56 and float32 at s = 4.5. Subtracting one
        # constant is exact, but a row far below the global maximum would underflow to 0 and its
        # normalisation be 0/0. So only logarithms are kept: log Q = logits + u + v, and each
        # log-sum-exp subtracts the maximum of its own row or column. float64 because u and v are
        # as large as the scores: in float32, scores near 1e6 would leave no digits of their sum.
        logits = scores.double() / epsilon  # (B,K)
        u = logits.new_zeros(len(logits), 1)  # (B,1) per image
        v = logits.new_zeros(1, logits.shape[1])  # (1,K) per prototype
        for _ in range(iterations):
            column = logits + u
            top = all_max(column.amax(0, keepdim=True))
            v = -top - all_sum((column - top).exp().sum(0, keepdim=True)).log()
            u = -(logits + v).logsumexp(1, keepdim=True)
        # the constants K and B of the two marginals cancel in this last step
        return torch.softmax(logits + v, dim=1).float()
