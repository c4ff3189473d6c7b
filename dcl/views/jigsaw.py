"""Jigsaw: cut images into n x n overlapping patches, and lay patches of a batch out as montages.

Patches and slots are counted alike, position-major: row v * B + b is position v (row by row, from
the top left) of image, or montage, b. So a permutation of the n * n * B rows says everything.
"""

import torch
from torch import Tensor

from dcl.views.view import View


def crop_boxes(
    height: int, width: int, grid: int = 2, overlap: float = 0.3
) -> list[tuple[int, int, int, int]]:
    """The n * n patches of an image as (top, left, height, width) in pixels, row by row.

    A patch has 1/n + `overlap` of the image's side; the outer ones touch its border, the others
    lie at equal distances. Raises ValueError. Source: Chen et al. 2021. Chapter: jigclu.
    """
    if grid < 1 or not 0 <= overlap <= 1 - 1 / grid:
        most = f"between 0 and 1 - 1/{grid}" if grid > 0 else "a fraction"
        raise ValueError(f"grid must be at least 1, overlap {most}; got {grid} and {overlap}")
    h, w = (round(side * (1 / grid + overlap)) for side in (height, width))
    if min(h, w) < 1:
        raise ValueError(f"images must be larger than {grid} patches; got {height} x {width}")
    steps = [k / max(1, grid - 1) for k in range(grid)]
    tops, lefts = ([round(room * k) for k in steps] for room in (height - h, width - w))
    return [(top, left, h, w) for top in tops for left in lefts]


def cut(x: Tensor, view: View, grid: int = 2, overlap: float = 0.3) -> Tensor:
    """One view of each patch of images (B,C,H,W) in [0,1]: (n*n*B,C,h,w), position-major."""
    boxes = crop_boxes(x.shape[2], x.shape[3], grid, overlap)
    return view(torch.cat([x[:, :, t : t + h, a : a + w] for t, a, h, w in boxes]))


def montage(patches: Tensor, perm: Tensor, grid: int = 2) -> Tensor:
    """B montages (B,C,n*h,n*w) of patches (n*n*B,C,h,w): slot k holds patch perm[k].

    `perm` (n*n*B,) int64, a permutation. Slot v * B + j is position v of montage j.
    """
    b, c, h, w = len(patches) // grid**2, *patches.shape[1:]
    rows = patches[perm].view(grid, grid, b, c, h, w)
    return rows.permute(2, 3, 0, 4, 1, 5).reshape(b, c, grid * h, grid * w)
