"""Where the images or vectors of a run come from, in words that a run folder can keep."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dcl.data import SPLITS, Data, load
from dcl.data.arrays import is_array
from dcl.data.files import named
from dcl.data.pixels import Scale
from dcl.nets.names import own_size
from dcl.runtime import dist

SMALLEST = 8
"""Pixels a side: the networks would downsample fewer to nothing."""


def side(data: str, size: int, encoder: object = "") -> int:
    """`size` if given; else for a folder what the encoder wants to see, and 32 without one.

    encoder: names, or a module: 224. 0 for all other data: their own. Raises ValueError for a size
    that is too small.
    """
    if size and size < SMALLEST:
        raise ValueError(f"size must be at least {SMALLEST}; got {size}")
    if size or not _place(data).is_dir():
        return size
    if isinstance(encoder, str) and encoder:
        return own_size(encoder)
    return 224 if encoder else 32


def apart(out: str | os.PathLike, name: str, data: str) -> None:
    """Refuse the folder of the images as the place of output, which is called `name`."""
    if (place := _place(data)).is_dir() and place.resolve() == Path(out).expanduser().resolve():
        raise ValueError(f"{name} must be another folder than the images'; got {str(out)!r}")


def _place(data: str) -> Path:
    """Where data is, if it is a folder or a file; it may be called folder:PATH, as in `load`."""
    return named("data", data.removeprefix("folder:"))


@dataclass(frozen=True)
class Source:
    """Names the images or vectors of a run."""

    data: str
    """A folder, the name of a data set, or a .npy file of images or vectors."""
    split: str = ""
    """Empty: the first."""
    size: int = 0
    """Images are resized to this many pixels a side; 0: kept as they are."""
    limit: int = 0
    """At most this many images, chosen at random; 0: all."""

    def absolute(self) -> "Source":
        """The same, to be found from any folder: with the whole path of a folder or file."""
        place = Path(self.data.removeprefix("folder:")).expanduser()
        there = bool(self.data) and (place.is_dir() or self.data.endswith(".npy"))
        return replace(self, data=os.path.abspath(place)) if there else self

    def load(
        self,
        progress: Callable[[int, int], None] | None = None,
        *,
        scale: Scale | None = None,
        tell: Callable[[str], object] | None = warnings.warn,
    ) -> Data:
        """The images or vectors. `progress`, `scale` and errors as in `dcl.data.load`.

        tell: called with each of `Data.remarks`, such as what was left out.
        """
        folder = _place(self.data)
        name = f"folder:{folder}" if folder.is_dir() else self.data
        if name.partition(":")[0] not in (*SPLITS, "folder") and not is_array(name):
            file = ", which is a file: give the folder that it lies in" * folder.is_file()
            raise ValueError(
                f"data must be an existing folder (seen from {str(Path.cwd())!r}), a .npy file of "
                f"images or vectors, or the name of a data set, {', '.join(SPLITS)}; "
                f"got {name!r}{file}"
            )
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0; got {self.limit}")
        with dist.main_process_first():
            data = load(
                name, self.split or None, size=self.size or None, progress=progress, scale=scale
            )
        if tell and dist.rank() == 0:
            for line in data.remarks():
                tell(line)
        return data.subset(self.limit) if 0 < self.limit < len(data) else data
