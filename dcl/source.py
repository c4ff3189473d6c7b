"""Where the images of a run come from, so that it can be written down and read again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dcl import dist
from dcl.data import SPLITS, Data, load


def side(data: str, size: int, encoder: bool) -> int:
    """`size` if it is given; else 224 for a folder with an encoder, 32 without, 0 for a set."""
    folder = Path(data).expanduser().is_dir()
    return size or (0 if not folder else 224 if encoder else 32)


@dataclass(frozen=True)
class Source:
    """The images of a run, by words that can be written down."""

    data: str
    """A folder, or the name of a set."""
    split: str = ""
    """Empty: the first that there is."""
    size: int = 0
    """Side in pixels to which images are brought; 0: as they are."""
    limit: int = 0
    """So many images at most, a random choice; 0: all."""

    def load(self, progress: Callable[[int, int], None] | None = None) -> Data:
        """The images. `progress` and what is raised as for `dcl.data.load`."""
        folder = Path(self.data).expanduser()
        name = f"folder:{folder}" if folder.is_dir() else self.data
        if name not in SPLITS and not name.startswith("folder:"):
            raise ValueError(
                f"data must be a folder that is there, seen from {str(Path.cwd())!r}, or the name "
                f"of a set, {', '.join(SPLITS)}; got {name!r}"
            )
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0; got {self.limit}")
        with dist.one_first():
            data = load(name, self.split or None, size=self.size or None, progress=progress)
        return data.subset(self.limit) if 0 < self.limit < len(data) else data
