"""Plain vectors (N,d): what they must be."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_vectors(x: Tensor) -> None:
    """Raise TypeError unless a tensor is float32, ValueError unless it is (N,d) and finite."""
    if x.dtype != torch.float32:
        raise TypeError(f"vectors (N,d) must be a float32 tensor; got {x.dtype} {tuple(x.shape)}")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"vectors must be (N,d), none 0; got {tuple(x.shape)}")
    if not torch.stack(x.aminmax()).isfinite().all():  # catches NaN too, and copies nothing
        bad = (~x.isfinite().all(1)).nonzero()[:, 0]
        raise ValueError(
            f"vectors must be finite; NaN or infinity in {len(bad)} of {len(x)} rows, the first "
            f"is row {int(bad[0])}"
        )


def vectors_of(x: Any, name: str = "X") -> Tensor:
    """An array or tensor of floats (N,d) as a float32 tensor, not rescaled.

    Raises TypeError for integers: they may be pixels, counts or categories, and only the caller
    knows how to scale them.
    """
    x = x if isinstance(x, Tensor) else np.asarray(x)
    if not (x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"):
        raise TypeError(
            f"{name} must be floats to be vectors (N,d); got {x.dtype} {tuple(x.shape)}. Pixels: "
            "divide by 255, or give them as images, uint8 (N,H,W)"
        )
    if isinstance(x, Tensor):
        return x.float()
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is refused
        return torch.from_numpy(np.ascontiguousarray(x, np.float32))
