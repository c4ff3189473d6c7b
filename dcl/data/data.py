"""A data set in memory: all images of one split in one tensor, with labels if it has them.

Labels are for evaluation; no method takes them.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath

import torch
from torch import Tensor

from dcl.data.vectors import check_vectors


@dataclass(frozen=True, eq=False)
class Data:
    """Images of one split: uint8 (N,C,H,W) with C 1 or 3, labels int64 (N,) or None.

    `images` may also be plain vectors, finite float32 (N,d) of any range, which are accepted
    wherever images are and used as they are. For a folder also `files`, the relative path of each
    image, and `skipped`, (file, reason) for each that could not be read or was left out; `scale`,
    if there are pixels of more than 8 bits, is (black, white), and `said` states it. Raises
    TypeError or ValueError for any other dtype, shape or length.
    """

    images: Tensor
    labels: Tensor | None
    classes: list[str] | None
    name: str
    split: str
    files: list[str] | None = None
    skipped: list[tuple[str, str]] | None = None
    scale: tuple[float, float] | None = None
    said: str = ""

    def __post_init__(self) -> None:
        x, y = self.images, self.labels
        if isinstance(x, Tensor) and (x.ndim == 2 or (x.is_floating_point() and x.ndim != 4)):
            check_vectors(x)
        elif not isinstance(x, Tensor) or x.dtype != torch.uint8:
            raise TypeError(
                f"images must be a uint8 tensor; got {getattr(x, 'dtype', type(x))} "
                "(dcl.data.arrays.tensor_of makes one of other arrays)"
            )
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
    def kinds(self) -> str:
        """How the images were stored: "as published", or the files' endings, such as ".jpg"."""
        if self.files is None:
            return "as published"
        return " ".join(sorted({PurePath(file).suffix.lower() for file in self.files}))

    def remarks(self) -> list[str]:
        """What a user should know of how a folder was read: the scale, and what was left out."""
        first: dict[str, tuple[str, int]] = {}
        for file, reason in self.skipped or ():
            name, n = first.get(reason, (file, 0))
            first[reason] = name, n + 1
        lines = [
            f"skipped {name}{f' and {n - 1} more' if n > 1 else ''}: {reason}"
            for reason, (name, n) in first.items()
        ]
        more = [f"skipped for {len(lines) - 20} other reasons, too"] if len(lines) > 20 else []
        return [self.said] * bool(self.said) + lines[:20] + more

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
        for part in self.images.split(block_of(self.images)):
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


def block_of(images: Tensor) -> int:
    """How many images take about 16 MiB."""
    return max(1, 2**24 // images[0].numel())
