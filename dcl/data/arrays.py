"""Arrays of images or vectors: one rule for shapes, dtypes, layouts and byte orders."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcl.data.vectors import vectors_of


def tensor_of(X: Any, name: str = "X") -> Tensor:
    """An array, tensor or nested list as images uint8 (N,C,H,W), or as vectors float32 (N,d).

    Images: (N,H,W), (N,C,H,W) or (N,H,W,C) with C 1 or 3; whole numbers in 0..255, floats in [0,1]
    or truth values. Vectors: floats (N,d) of any range, used as they are. Any width, byte order and
    memory layout. `name` is what errors call X.

    Raises TypeError for what holds no numbers, and for whole numbers (N,d): they may be pixels,
    counts or categories, and only the caller knows how to scale them. ValueError for other shapes
    and ranges.
    """
    x = X if isinstance(X, Tensor) else _native(X, name)
    shape = tuple(x.shape)
    if x.ndim == 2:
        return vectors_of(x, name)
    if x.ndim == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4:
        raise ValueError(
            f"{name} must hold many images; got {shape}, which looks like one, (H,W,C): the first "
            "axis counts images"
        )
    if x.ndim in (3, 4) and not shape[0]:
        raise ValueError(f"{name} must hold at least one image; got {shape}")
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(
            f"{name} must be (N,H,W), (N,C,H,W), (N,H,W,C) or vectors (N,d); got {shape}"
        )
    if x.shape[1] not in (1, 3):
        if x.shape[3] not in (1, 3):
            raise ValueError(f"{name} must have 1 or 3 channels; got {shape}")
        x = x.permute(0, 3, 1, 2) if isinstance(x, Tensor) else x.transpose(0, 3, 1, 2)
    if not isinstance(x, Tensor):
        x = torch.from_numpy(np.ascontiguousarray(x))
    return _bytes(x, name).contiguous()


FILES = "images in files are given as the path of their folder"


def array_of(X: Any, name: str = "X") -> np.ndarray:
    """Anything that numpy takes as an array. Raises ValueError for a list of different shapes."""
    try:
        return np.asarray(X)
    except ValueError as error:
        text = f"{name} must be one array; its items differ in shape (resize them; {FILES})"
        raise ValueError(text) from error


def _native(X: Any, name: str) -> np.ndarray:
    """Anything that numpy takes as numbers, in this machine's byte order."""
    x = array_of(X, name)
    if x.dtype.kind not in "biuf":
        hint = f" ({FILES})" if x.ndim == 1 else ""
        raise TypeError(f"{name} must hold numbers; got {x.dtype} {x.shape}{hint}")
    if x.ndim == 2:
        return x
    kind = x.dtype.newbyteorder("=")
    if x.dtype.kind == "f" and x.dtype.itemsize > 8 or x.dtype == np.uint64:
        kind = np.dtype(float)  # PyTorch has none such
    elif x.dtype.kind == "u" and x.dtype.itemsize > 1:
        kind = np.dtype(np.int64)
    return x.astype(kind, copy=False)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images uint8 (N,C,H,W) with 1 or 3 channels as grey (1) or colour (3), as PIL converts."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    grey = images.new_empty((len(images), 1, *images.shape[2:]))
    weights = torch.tensor([19595, 38470, 7471], device=images.device)  # ITU-R 601, of 65,536
    for x, y in zip(images.split(1024), grey.split(1024)):
        y[:, 0] = ((x.permute(0, 2, 3, 1) * weights).sum(3) + 32768) >> 16
    return grey


def _bytes(x: Tensor, name: str) -> Tensor:
    """Pixels of any kind as uint8."""
    if x.dtype == torch.uint8:
        return x
    if x.dtype == torch.bool:
        return x.to(torch.uint8) * 255
    if x.is_complex():
        raise TypeError(f"{name} must hold real numbers; got {x.dtype} {tuple(x.shape)}")
    whole = not x.is_floating_point()
    given, x = x.dtype, x.long() if whole else x
    low, high = (float(v) for v in x.aminmax())
    if not (low >= 0 and high <= (255 if whole else 1)):
        expected = "of whole numbers must be in 0..255" if whole else "of floats must be in [0,1]"
        raise ValueError(
            f"{name} {expected}; got {low:.3g} to {high:.3g} ({str(given).removeprefix('torch.')}):"
            " divide by the largest value that a pixel can have, and give floats"
        )
    return x.to(torch.uint8) if whole else (x * 255).round().to(torch.uint8)


def is_array(data: str) -> bool:
    """Whether `data`, as in `Source`, names a file with an array: .npy, and no folder."""
    return data.endswith(".npy") and not Path(data).expanduser().is_dir()


def is_vectors(data: str) -> bool:
    """Whether `data` names vectors: photographs, or a .npy file that is there and holds (N,d).

    Also one of (N,), which `read_array` refuses. Only the head of the file is read.
    """
    if data.partition(":")[0] == "photographs":
        return True
    if not is_array(data) or not Path(data).expanduser().is_file():
        return False
    try:
        return np.load(Path(data).expanduser(), mmap_mode="r", allow_pickle=False).ndim <= 2
    except (ValueError, EOFError, AttributeError):
        return False  # `read_array` says why


def read_array(path: Path) -> Tensor:
    """The images or vectors of a .npy file with one array, see `tensor_of`; runs no code from it.

    Raises FileNotFoundError, TypeError and ValueError as `tensor_of`, ValueError for other files.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there must be a .npy file at {str(path)!r}; there is none")
    try:
        x = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:  # an array of objects, or no array at all
        raise ValueError(
            f"{str(path)!r} must be a .npy file of images or of floats (N,d): {error}"
        ) from error
    if not isinstance(x, np.ndarray):  # several arrays in an archive
        raise ValueError(f"{str(path)!r} must hold one array; it is an archive of {list(x)}")
    return tensor_of(x, repr(str(path)))
