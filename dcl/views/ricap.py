"""RICAP: random crops of four images, put together into one (Takahashi et al. 2018)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RicapDraw:
    """One draw: which images are combined, and how large the four patches are.

    Patches: 0 top left, 1 bottom left, 2 top right, 3 bottom right.
    """

    perms: Tensor
    """(4,B) int64: image `i` of the mixed batch takes patch `k` from image `perms[k, i]`."""
    weights: Tensor
    """(4,) float: the patches' fractions of the area; they sum to 1."""
    heights: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]


def ricap_draw(
    batch: int, size: int | tuple[int, int], beta: float = 0.3, device: torch.device | str = "cpu"
) -> RicapDraw:
    """Draw the partners and the patch sizes for a batch.

    The corner where the patches meet is drawn once per batch, each coordinate
    round(side * Beta(beta, beta)). As in LSD-C, a patch that covers more than a quarter keeps
    its own image (identity permutation); the others get a random permutation.

    `size` is the side, or (height, width). Raises ValueError. Source: LSD-C (Rebuffi et al. 2020)
    section 3.2. Chapter: lsdc.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(batch, height, width) < 1:
        raise ValueError(f"batch and size must be at least 1; got {batch} and {size}")
    if not beta > 0:
        raise ValueError(f"beta must be above 0; got {beta}")
    corner = torch.distributions.Beta(beta, beta).sample((2,))  # on the CPU: sizes are Python's
    h, w = (round(side * float(u)) for side, u in zip((height, width), corner, strict=True))
    heights, widths = (h, height - h, h, height - h), (w, w, width - w, width - w)
    areas = [a * b for a, b in zip(heights, widths, strict=True)]
    own = torch.arange(batch, device=device)
    perms = [
        own if 4 * area > height * width else torch.randperm(batch, device=device) for area in areas
    ]
    weights = torch.tensor([area / (height * width) for area in areas])
    return RicapDraw(torch.stack(perms), weights.to(device, non_blocking=True), heights, widths)


def ricap(x: Tensor, draw: RicapDraw) -> Tensor:
    """Mix `x` (B,C,H,W) by `draw`, with new crop positions at each call.

    Two calls with one draw give two batches with the same partners, sizes and labels, whose
    patches show different places: the pair that LSD-C's consistency loss compares. Positions are
    drawn once per patch for the batch. Raises ValueError if the draw is for another shape.
    """
    h, w = draw.heights[0] + draw.heights[1], draw.widths[0] + draw.widths[2]
    if (len(x), *x.shape[2:]) != (draw.perms.shape[1], h, w):
        raise ValueError(
            f"x must be ({draw.perms.shape[1]},C,{h},{w}), like the draw; got {tuple(x.shape)}"
        )
    patches = []
    for perm, rows, columns in zip(draw.perms.to(x.device), draw.heights, draw.widths, strict=True):
        top = int(torch.randint(h - rows + 1, ()))
        left = int(torch.randint(w - columns + 1, ()))
        patches.append(x[:, :, top : top + rows, left : left + columns][perm])
    left_half, right_half = torch.cat(patches[:2], 2), torch.cat(patches[2:], 2)
    return torch.cat([left_half, right_half], 3)


def mixed_targets(s: Tensor, draw: RicapDraw) -> Tensor:
    r"""Soft pair labels (B,B) of RICAP mixtures (rows) and clean images (columns), of s (B,B).

    :math:`T_{ij} = \sum_k W_k S_{\pi_k(i) j}`: a mixture is as much like j as its parts are, by
    their area. Source: LSD-C section 3.2. Chapter: lsdc.
    """
    return torch.einsum("k,kij->ij", draw.weights, s[draw.perms])
