"""Image sets by name or folder, as uint8 tensors.

`load` gives a `Data`: all images of one split in one tensor (N,C,H,W), with labels where the set
has them. Labels are for measuring; no method takes them.
"""

import hashlib
import os
import pickle
import shutil
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BOTH = ("train", "test", "train+test")
SPLITS = {  # the first is the default
    "digits": ("all",),
    "shapes": ("all",),
    "mnist": BOTH,
    "fashion-mnist": BOTH,
    "cifar10": BOTH,
    "cifar100-20": BOTH,
    "stl10": (*BOTH, "unlabeled", "train+unlabeled"),
}
TORCHVISION = {  # name: (torchvision's class, the folder it looks in)
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100-20": ("CIFAR100", "cifar-100-python"),
    "stl10": ("STL10", "stl10_binary"),
}
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True, eq=False)
class Data:
    """Images of one split: uint8 (N,C,H,W) with C 1 or 3, labels int64 (N,) or None.

    Raises TypeError or ValueError for any other dtype, shape or length.
    """

    images: Tensor
    labels: Tensor | None
    classes: list[str] | None
    name: str
    split: str

    def __post_init__(self) -> None:
        x, y = self.images, self.labels
        if not isinstance(x, Tensor) or x.dtype != torch.uint8:
            raise TypeError(f"images must be a uint8 tensor; got {getattr(x, 'dtype', type(x))}")
        if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
            raise ValueError(
                f"images must be (N,C,H,W), not empty, with C 1 or 3; got {tuple(x.shape)}"
            )
        if y is None:
            return
        if not isinstance(y, Tensor) or y.dtype != torch.int64:
            raise TypeError(f"labels must be an int64 tensor; got {getattr(y, 'dtype', type(y))}")
        if y.shape != x.shape[:1]:
            raise ValueError(f"labels must be ({len(x)},), one per image; got {tuple(y.shape)}")
        if y.min() < 0 or (self.classes is not None and y.max() >= len(self.classes)):
            raise ValueError(
                f"labels must be between 0 and the number of classes less one; "
                f"got {int(y.min())} to {int(y.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        """Number of colour channels, 1 or 3."""
        return self.images.shape[1]

    @property
    def size(self) -> int:
        """Length of the shorter side in pixels."""
        return min(self.images.shape[2:])

    @cached_property
    def checksum(self) -> str:
        """First 16 hex digits of the sha256 of shape, image bytes and label bytes."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for part in self.images.split(4096):
            digest.update(part.cpu().contiguous().numpy())
        if self.labels is not None:
            digest.update(self.labels.cpu().numpy().astype("<i8"))
        return digest.hexdigest()[:16]

    def subset(self, n: int, seed: int = 0) -> "Data":
        """A random n of the images, in the set's order; the labels play no part in the choice."""
        if not 1 <= n <= len(self):
            raise ValueError(f"n must be between 1 and the number of images, {len(self)}; got {n}")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(self), generator=generator)[:n].sort().values
        rows = rows.to(self.images.device)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, images=self.images[rows], labels=labels)

    def to(self, device: str | torch.device) -> "Data":
        """The same set with images and labels on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)


def load(
    name: str,
    split: str | None = None,
    *,
    size: int | None = None,
    root: str | Path | None = None,
) -> Data:
    """Load a set by name, or the images below a folder with ``folder:PATH``.

    split: one of `SPLITS` (default: the first); size: resize to size x size; root: where
    downloads are, see `data_root`. Raises ValueError for an unknown name or split, and
    FileNotFoundError where files are missing and cannot be downloaded. Described in data/README.md.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1; got {size}")
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")), split, size)
    if name not in SPLITS:
        raise ValueError(f"name must be one of {', '.join(SPLITS)} or folder:PATH; got {name!r}")
    split = _split(split, SPLITS[name])
    if name == "digits":
        parts = [_digits()]
    elif name == "shapes":
        parts = [_shapes()]
    else:
        parts = [_torchvision(name, part, data_root(root)) for part in split.split("+")]
    labels = [y for _, y, _ in parts if y is not None]
    return Data(
        images=_resize(torch.cat([x for x, _, _ in parts]), size),
        labels=torch.cat(labels) if len(labels) == len(parts) else None,
        classes=parts[0][2],
        name=name,
        split=split,
    )


def data_root(root: str | Path | None = None) -> Path:
    """Where downloads are: root, else $DCL_DATA, else the checkout's data/, else ~/.cache/dcl."""
    if root or os.environ.get("DCL_DATA"):
        return Path(root or os.environ["DCL_DATA"]).expanduser()
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    return Path("~/.cache/dcl").expanduser()


def _split(split: str | None, known: tuple[str, ...]) -> str:
    if split and split not in known:
        raise ValueError(f"split must be one of {', '.join(known)}; got {split!r}")
    return split or known[0]


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[2:] == (size, size):
        return images
    done = [
        F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
        for part in images.split(1024)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in done])


def _digits() -> tuple[Tensor, Tensor, list[str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images)[:, None] * 255 / 16  # float64 holds every step exactly
    x = F.interpolate(x, scale_factor=2, mode="bilinear")
    return (x + 0.5).floor().to(torch.uint8), torch.from_numpy(digits.target).long(), [*"0123456789"]


def _shapes() -> tuple[Tensor, Tensor, list[str]]:
    from dcl.shapes import SHAPES, shapes

    images, labels, _ = shapes()
    return torch.from_numpy(images), torch.from_numpy(labels), list(SHAPES)
