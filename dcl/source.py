"""Where the images or vectors of a run come from, so that it can be written down and read again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcl import dist
from dcl.data import SPLITS, Data, load
from dcl.vectors import is_vectors


def recipe(module: Any, data: str, encoder: bool, device: str, vectors: bool = False) -> str:
    """The recipe that fits: of a method's PROFILES, for a set's name or a folder, and a device.

    A method without a recipe for photographs, or for vectors, has "quick".
    """
    own = ["frozen", "gpu", "photos"] if encoder else ["gpu"] * (device == "cuda") + ["photos"]
    if data in ("digits", "shapes"):
        own = [f"quick-{data}"]
    elif vectors or is_vectors(data):
        own = ["vectors"]
    return next(p for p in (*own, "quick") if p in module.PROFILES)


def side(data: str, size: int, encoder: bool) -> int:
    """`size` if given; else for a folder 224 with an encoder and 32 without, for all others 0."""
    folder = Path(data).expanduser().is_dir()
    return size or (0 if not folder else 224 if encoder else 32)


@dataclass(frozen=True)
class Source:
    """The images or vectors of a run, by words that can be written down."""

    data: str
    """A folder, the name of a set, or a .npy file of vectors."""
    split: str = ""
    """Empty: the first that there is."""
    size: int = 0
    """Side in pixels to which images are brought; 0: as they are."""
    limit: int = 0
    """So many images at most, a random choice; 0: all."""

    def load(self, progress: Callable[[int, int], None] | None = None) -> Data:
        """The images or vectors. `progress` and what is raised as for `dcl.data.load`."""
        folder = Path(self.data).expanduser()
        name = f"folder:{folder}" if folder.is_dir() else self.data
        if name not in SPLITS and not name.startswith("folder:") and not is_vectors(name):
            raise ValueError(
                f"data must be a folder that is there, seen from {str(Path.cwd())!r}, a .npy file "
                f"of vectors, or the name of a set, {', '.join(SPLITS)}; got {name!r}"
            )
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0; got {self.limit}")
        with dist.one_first():
            data = load(name, self.split or None, size=self.size or None, progress=progress)
        return data.subset(self.limit) if 0 < self.limit < len(data) else data
