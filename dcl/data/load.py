"""Data sets by name or folder, as uint8 tensors; vectors, such as a .npy file's, as float32."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dcl.data.arrays import is_array, read_array
from dcl.data.data import Data, block_of
from dcl.data.download import data_root, download
from dcl.data.files import named, one_line, printable
from dcl.data.folder import Progress, folder
from dcl.data.pixels import Scale

BOTH = ("train", "test", "train+test")
SPLITS = {  # the first is the default
    "digits": ("all",),
    "shapes": ("all",),
    "photographs": ("all",),
    "people": BOTH,
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
PARTS = ("train", "test", "val", "valid", "validation", "dev", "unlabeled", "extra")
"""Subfolders that are splits of a folder, if train is one of them."""
Part = tuple[Tensor, Tensor | None, list[str]]  # images, labels, names of the classes


def load(
    name: str,
    split: str | None = None,
    *,
    size: int | None = None,
    root: str | Path | None = None,
    cache_bytes: int | None = None,
    progress: Progress | None = None,
    scale: Scale | None = None,
) -> Data:
    """Load a data set by name, images below a folder as ``folder:PATH``, or an array from a file.

    split: one of `SPLITS` (default: the first), which may also be part of the name, as in
    ``mnist:train+test``; size: resize to size x size; root: where downloads are, see `data_root`.
    A folder whose decoded images take more than `cache_bytes` (default `dcl.data.memmap.budget`) is
    decoded once into a file below root, and `images` reads from there; progress(done, all) is
    called now and then while a folder is decoded; scale: `Data.scale` of another folder, to be used
    instead of its own. A folder with a subfolder train, and test or the like beside it (`PARTS`),
    has these splits, several joined by +, and "all"; without a split train is read, and what is
    beside it is listed in `skipped`. A name that ends in .npy is a file with one array of images or
    vectors, see `dcl.data.arrays.tensor_of`, without labels.

    Raises ValueError for an unknown name or split, and FileNotFoundError if files are missing and
    cannot be downloaded; for a folder see `dcl.data.folder.folder`; for a .npy file see
    `dcl.data.arrays.read_array`. Sources: data/README.md.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, such as digits or folder:PATH; got {name!r}")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be an integer of at least 1; got {size!r}")
    if name.startswith("folder:"):
        path = named("folder:PATH", name.removeprefix("folder:"))
        choices = splits(name)
        joined = {*(split or "").split("+")} <= {*choices}  # any of them, joined by +
        split = split if split and joined else _split(split, choices)
        parts = [""] if "all" in split.split("+") else split.split("+")
        place = data_root(root) / "cache"
        found = folder(
            path,
            parts,
            size,
            divided=_parts(path),
            place=place,
            cache_bytes=cache_bytes,
            progress=progress,
            scale=scale,
        )
        shown = printable(path.resolve().name)
        return Data(found.images, found.labels, found.classes, shown, split, *found[3:])
    if is_array(name):
        split, path = _split(split, splits(name)), Path(name).expanduser()
        images = _resize(read_array(path), size, name)
        return Data(images, None, None, printable(path.stem), split)
    split, name = _split(split, splits(name)), name.partition(":")[0]
    if name in TORCHVISION:
        sets = [_torchvision(name, part, data_root(root)) for part in split.split("+")]
    else:
        drawn = {
            "digits": _digits,
            "shapes": _shapes,
            "people": _people,
            "photographs": _photographs,
        }
        sets = [drawn[name](part) for part in split.split("+")]
    images = _resize(_joined([x for x, _, _ in sets]), size, name)
    known = [y for _, y, _ in sets if y is not None]
    labels = _joined(known) if len(known) == len(sets) else None
    return Data(images, labels, sets[0][2], name, split)


def splits(name: str) -> tuple[str, ...]:
    """The splits that `load` knows for a name, the default first; just one if the name gives it.

    Raises ValueError for an unknown name.
    """
    if name.startswith("folder:"):
        parts = _parts(named("folder:PATH", name.removeprefix("folder:")))
        joined = ["train+test"] * ("test" in parts)
        return (*parts, *joined, "all") if parts else ("all",)
    if is_array(name):
        return ("all",)
    name, _, part = name.partition(":")
    if name not in SPLITS:
        raise ValueError(
            f"name must be one of {', '.join(SPLITS)}, folder:PATH or a .npy file; got {name!r}"
        )
    return (_split(part, SPLITS[name]),) if part else SPLITS[name]


def _parts(path: Path) -> list[str]:
    """The splits of a folder: train first, then the others; [] if it has no train, or no other."""
    try:
        found = [part for part in PARTS if (path / part).is_dir()]
    except PermissionError as error:
        text = f"{str(path)!r} must be a folder that can be read; {one_line(error)}"
        raise ValueError(text) from error
    return found if "train" in found and len(found) > 1 else []


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)  # cat would copy a single one


def _split(split: str | None, known: tuple[str, ...]) -> str:
    if split and split not in known:
        several = "one of " * (len(known) > 1)
        raise ValueError(f"split must be {several}{', '.join(known)}; got {split!r}")
    return split or known[0]


def _resize(images: Tensor, size: int | None, name: str) -> Tensor:
    if size is not None and images.ndim == 2:
        raise ValueError(f"size is for images; {name} holds vectors")
    if size is None or images.shape[2:] == (size, size):
        return images
    out = images.new_empty((*images.shape[:2], size, size))
    rows = block_of(images)  # in parts, because floats take four times the memory
    for x, y in zip(images.split(rows), out.split(rows)):
        small = F.interpolate(x.float(), (size, size), mode="bilinear", antialias=True)
        y.copy_(small.round_().clamp_(0, 255))
    return out


def _digits(split: str) -> Part:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images)[:, None] * 255 / 16  # float64 holds every step exactly
    images = (F.interpolate(x, scale_factor=2, mode="bilinear") + 0.5).floor().to(torch.uint8)
    return images, torch.from_numpy(found.target).long(), [*"0123456789"]


def _shapes(split: str) -> Part:
    from dcl.data.shapes import SHAPES, shapes

    images, labels, _ = shapes()
    return torch.from_numpy(images), torch.from_numpy(labels), list(SHAPES)


def _people(split: str) -> Part:
    from dcl.data.people import PEOPLE, people

    found, names = people(split), [f"person {k}" for k in range(sum(PEOPLE.values()))]
    return torch.from_numpy(found.images), torch.from_numpy(found.person), names


def _photographs(split: str) -> Part:
    from dcl.data.photographs import photographs

    return photographs()


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
