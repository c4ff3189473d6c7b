"""Do two images belong together? What LSD-C and DAC ask, scored by cross-entropy."""

from torch import Tensor


def pair_loss(
    a: Tensor, b: Tensor, target: Tensor, weights: Tensor | None = None, eps: float = 1e-7
) -> Tensor:
    r"""Binary cross-entropy of "the same cluster" over all pairs of rows, a scalar.

    `a` (A,D), `b` (B,D): their dot products :math:`P_{ij} = a_i \cdot b_j` are what is scored.
    Rows of probabilities (LSD-C) give the probability that two independent draws agree, rows of
    length 1 without negative numbers (DAC) a cosine. `target` (A,B) in [0,1]; `weights` (A,B),
    all 1 if missing: with a mean of 1 over the batch a weighted mean, 0 leaves a pair out.

    Sources: LSD-C section 3.1; DAC, its objective. Chapters: lsdc, dac.
    """
    same = (a @ b.T).clamp(0, 1)  # rounding may lead above 1, and the log to NaN
    loss = -(target * (same + eps).log() + (1 - target) * (1 - same + eps).log())
    return (loss if weights is None else weights * loss).mean()
