"""Plain vectors (N,d): what counts as such, and the file that they come from."""

from pathlib import Path
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
    if not torch.stack(x.aminmax()).isfinite().all():  # which sees NaN too, and copies nothing
        bad = (~x.isfinite().all(1)).nonzero()[:, 0]
        raise ValueError(
            f"vectors must be finite; NaN or infinity in {len(bad)} of {len(x)} rows, the first "
            f"is row {int(bad[0])}"
        )


def vectors_of(x: Any, name: str = "X") -> Tensor:
    """An array or tensor of floats (N,d) as a float32 tensor, in the range that it has.

    Raises TypeError for whole numbers, which may be pixels, counts or categories: only who has
    them knows their scale.
    """
    x = x if isinstance(x, Tensor) else np.asarray(x)
    if not (x.is_floating_point() if isinstance(x, Tensor) else x.dtype.kind == "f"):
        raise TypeError(
            f"{name} must be floats to be vectors (N,d); got {x.dtype} {tuple(x.shape)}. Pixels: "
            "divide by 255, or give them as images, uint8 (N,H,W)"
        )
    if isinstance(x, Tensor):
        return x.float()
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and refused
        return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def is_vectors(data: str) -> bool:
    """Whether words that name a set name a file of vectors: they end in .npy, as no folder does."""
    return data.endswith(".npy") and not Path(data).expanduser().is_dir()


def read_vectors(path: Path) -> Tensor:
    """The vectors float32 (N,d) of a .npy file with one array of floats; no code in it is run.

    Raises FileNotFoundError, TypeError for other numbers, ValueError for other files.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there must be a .npy file at {str(path)!r}; there is none")
    try:
        x = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:  # an array of objects, or something else altogether
        raise ValueError(f"{str(path)!r} must be a .npy file of floats (N,d): {error}") from error
    if not isinstance(x, np.ndarray):  # several arrays in an archive
        raise ValueError(f"{str(path)!r} must hold one array; it is an archive of {list(x)}")
    return vectors_of(x, repr(str(path)))
