"""Data sets by name or folder, as uint8 tensors; vectors from a .npy file, as float32.

`load` returns a `Data`: all images of one split in one tensor (N,C,H,W), with labels if the data
set has them, or plain vectors (N,d). Labels are for evaluation; no method takes them.
"""

import hashlib
import pickle
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dcl.data.download import data_root, download
from dcl.data.files import printable
from dcl.data.folder import Progress, folder
from dcl.data.vectors import check_vectors, is_vectors, read_vectors

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
TORCHVISION = {  # torchvision's class, and the folder below the root that it looks in
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100-20": ("CIFAR100", "cifar-100-python"),
    "stl10": ("STL10", "stl10_binary"),
}
Part = tuple[Tensor, Tensor | None, list[str]]  # images, labels, names of the classes


@dataclass(frozen=True, eq=False)
class Data:
    """Images of one split: uint8 (N,C,H,W) with C 1 or 3, labels int64 (N,) or None.

    `images` may also be plain vectors, finite float32 (N,d) of any range, which are accepted
    wherever images are and used as they are. For a folder also `files`, the relative path of each
    image, and `skipped`, (file, reason) for each that could not be read. Raises TypeError or
    ValueError for any other dtype, shape or length.
    """

    images: Tensor
    labels: Tensor | None
    classes: list[str] | None
    name: str
    split: str
    files: list[str] | None = None
    skipped: list[tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        x, y = self.images, self.labels
        if isinstance(x, Tensor) and (x.ndim == 2 or (x.is_floating_point() and x.ndim != 4)):
            check_vectors(x)
        elif not isinstance(x, Tensor) or x.dtype != torch.uint8:
            raise TypeError(f"images must be a uint8 tensor; got {getattr(x, 'dtype', type(x))}")
        elif x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape:
            raise ValueError(
                f"images must be (N,C,H,W) with C 1 or 3, none 0; got {tuple(x.shape)}"
            )
        if self.files is not None and len(self.files) != len(x):
            raise ValueError(f"files must be {len(x)}, one per image; got {len(self.files)}")
        if y is None:
            return
        if not isinstance(y, Tensor) or y.dtype != torch.int64:
            raise TypeError(f"labels must be an int64 tensor; got {getattr(y, 'dtype', type(y))}")
        if y.shape != x.shape[:1]:
            raise ValueError(f"labels must be ({len(x)},), one per image; got {tuple(y.shape)}")
        lowest, highest = int(y.min()), int(y.max())
        if lowest < 0 or (self.classes is not None and highest >= len(self.classes)):
            last = "up" if self.classes is None else f"to {len(self.classes) - 1}"
            raise ValueError(f"labels must be from 0 {last}; got {lowest} to {highest}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def vectors(self) -> bool:
        """Whether these are vectors (N,d), not images; `channels` and `size` are 0 then."""
        return self.images.ndim == 2

    @property
    def noun(self) -> str:
        """What one row is: "vector" or "image"."""
        return "vector" if self.vectors else "image"

    @property
    def channels(self) -> int:
        """Number of colour channels, 1 or 3."""
        return 0 if self.vectors else self.images.shape[1]

    @property
    def size(self) -> int:
        """Length of the shorter side in pixels."""
        return min(self.images.shape[2:], default=0)

    @cached_property
    def checksum(self) -> str:
        """First 16 hex digits of the sha256 of shape, image bytes and label bytes."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for part in self.images.split(_rows(self.images)):
            digest.update(part.cpu().contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    def subset(self, n: int, seed: int = 0) -> "Data":
        """A random n of the images, in their original order; labels play no part in the choice.

        The n images are copied into memory; with n = N the data set itself is returned.
        """
        if not 1 <= n <= len(self):
            raise ValueError(f"n must be between 1 and the number of images, {len(self)}; got {n}")
        if n == len(self):
            return self
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]
        rows = chosen.sort().values
        files = None if self.files is None else [self.files[k] for k in rows.tolist()]
        rows = rows.to(self.images.device)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, images=self.images[rows], labels=labels, files=files)

    def to(self, device: str | torch.device) -> "Data":
        """The same data set with images and labels on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, images=self.images.to(device), labels=labels)


def load(
    name: str,
    split: str | None = None,
    *,
    size: int | None = None,
    root: str | Path | None = None,
    cache_bytes: int | None = None,
    progress: Progress | None = None,
) -> Data:
    """Load a data set by name, images below a folder as ``folder:PATH``, or vectors from a file.

    split: one of `SPLITS` (default: the first), which may also be part of the name, as in
    ``mnist:train+test``; size: resize to size x size; root: where downloads are, see `data_root`.
    A folder whose decoded images take more than `cache_bytes` (default `dcl.data.memmap.budget`) is
    decoded once into a file below root, and `images` reads from there; progress(done, all) is
    called now and then while a folder is decoded. A name that ends in .npy is a file with one
    array of floats (N,d), which become float32 vectors without labels.

    Raises ValueError for an unknown name or split, and FileNotFoundError if files are missing and
    cannot be downloaded; for a folder see `dcl.data.folder.folder`; for a .npy file also TypeError
    if its numbers are not floats. Sources: data/README.md.
    """
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be an integer of at least 1; got {size!r}")
    if name.startswith("folder:"):
        path = Path(name.removeprefix("folder:")).expanduser()
        split = _split(split, splits(name))
        parts = [""] if split == "all" else split.split("+")
        place = data_root(root) / "cache"
        found = folder(path, parts, size, place=place, cache_bytes=cache_bytes, progress=progress)
        shown = printable(path.resolve().name)
        return Data(found.images, found.labels, found.classes, shown, split, *found[3:])
    if is_vectors(name):
        if size is not None:
            raise ValueError(f"size is for images; {name} holds vectors")
        split, path = _split(split, splits(name)), Path(name).expanduser()
        return Data(read_vectors(path), None, None, printable(path.stem), split)
    split, name = _split(split, splits(name)), name.partition(":")[0]
    if name in TORCHVISION:
        sets = [_torchvision(name, part, data_root(root)) for part in split.split("+")]
    else:
        sets = [_digits() if name == "digits" else _shapes()]
    images = _resize(_joined([x for x, _, _ in sets]), size)
    known = [y for _, y, _ in sets if y is not None]
    labels = _joined(known) if len(known) == len(sets) else None
    return Data(images, labels, sets[0][2], name, split)


def splits(name: str) -> tuple[str, ...]:
    """The splits that `load` knows for a name, the default first; just one if the name gives it.

    Raises ValueError for an unknown name.
    """
    if name.startswith("folder:"):
        path = Path(name.removeprefix("folder:")).expanduser()
        divided = (path / "train").is_dir() and (path / "test").is_dir()
        return BOTH if divided else ("all",)
    if is_vectors(name):
        return ("all",)
    name, _, part = name.partition(":")
    if name not in SPLITS:
        raise ValueError(
            f"name must be one of {', '.join(SPLITS)}, folder:PATH or a .npy file; got {name!r}"
        )
    return (_split(part, SPLITS[name]),) if part else SPLITS[name]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)  # cat would copy a single one


def _rows(images: Tensor) -> int:
    """How many images take about 16 MiB."""
    return max(1, 2**24 // images[0].numel())


def _split(split: str | None, known: tuple[str, ...]) -> str:
    if split and split not in known:
        raise ValueError(f"split must be one of {', '.join(known)}; got {split!r}")
    return split or known[0]


def _resize(images: Tensor, size: int | None) -> Tensor:
    if size is None or images.shape[2:] == (size, size):
        return images
    out = images.new_empty((*images.shape[:2], size, size))
    rows = _rows(images)  # in parts, because floats take four times the memory
    for x, y in zip(images.split(rows), out.split(rows)):
        small = F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True)
        y.copy_(small.round_().clamp_(0, 255))
    return out


def _digits() -> Part:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images)[:, None] * 255 / 16  # float64 holds every step exactly
    images = (F.interpolate(x, scale_factor=2, mode="bilinear") + 0.5).floor().to(torch.uint8)
    return images, torch.from_numpy(found.target).long(), [*"0123456789"]


def _shapes() -> Part:
    from dcl.data.shapes import SHAPES, shapes

    images, labels, _ = shapes()
    return torch.from_numpy(images), torch.from_numpy(labels), list(SHAPES)


def _torchvision(name: str, split: str, root: Path) -> Part:
    """One split through torchvision: from the files in root, or downloaded once."""
    from torchvision import datasets

    class_name, place = TORCHVISION[name]
    dataset = getattr(datasets, class_name)
    which: Any = {"split": split} if name == "stl10" else {"train": split == "train"}
    try:
        found = dataset(root, **which)
    except RuntimeError:  # absent, or a checksum is wrong
        download(name, dataset, root, place)
        found = dataset(root, **which)
    if name.endswith("mnist"):
        classes = [*"0123456789"] if name == "mnist" else list(found.classes)
        return found.data[:, None], found.targets.long(), classes
    if name == "stl10":
        labels = None if split == "unlabeled" else torch.from_numpy(found.labels).long()
        return torch.from_numpy(np.ascontiguousarray(found.data)), labels, list(found.classes)
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    if name == "cifar10":
        return images, torch.tensor(found.targets), list(found.classes)
    # torchvision keeps only the 100 fine labels; the 20 coarse ones are in the same files, whose
    # checksums it has just verified
    files = [root / place / file for file in (split, "meta")]
    coarse, meta = (pickle.loads(file.read_bytes(), encoding="latin1") for file in files)
    return images, torch.tensor(coarse["coarse_labels"]), list(meta["coarse_label_names"])
