"""The images below a folder: their names in order, and those refused without opening them."""

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ENDINGS = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
ENDINGS |= {".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}  # the last need a recent PIL
Bad = tuple[str, str]  # a file and the reason, in one line, why it has no image


class File(NamedTuple):
    """A file as the cache identifies it: with a new size or time it is a new file."""

    name: str
    size: int
    changed: int


def listed(top: Path, parts: list[str]) -> tuple[list[File], list[Bad]]:
    """The images below a folder, sorted part by part, and those refused without opening them."""
    files: list[File] = []
    refused: list[Bad] = []
    for part in parts:
        found: list[File] = []
        for name in _names(top / part, refused, top):
            try:
                info = os.stat(top / name)
            except OSError as error:  # also a link to itself, or no permission
                refused.append((name, "broken link" if error.errno == 2 else one_line(error)))
                continue
            if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
                refused.append((name, "a pipe, socket or device, not a file"))
            elif not info.st_size:
                refused.append((name, "empty file"))
            elif not os.access(top / name, os.R_OK):
                refused.append((name, "Permission denied"))
            else:
                found.append(File(name, info.st_size, info.st_mtime_ns))
        files += sorted(found)
    return files, refused


def _names(start: Path, refused: list[Bad], top: Path) -> Iterator[str]:
    """Paths relative to `top` of image files, by suffix, below `start`, each folder once."""

    def relative(path: str) -> str:
        return Path(path).relative_to(top).as_posix()

    def identity(path: str | Path) -> tuple[int, int]:
        return (info := os.stat(path)).st_dev, info.st_ino

    def unreadable(error: OSError) -> None:
        refused.append((relative(error.filename), f"folder: {one_line(error)}"))

    holders = {identity(path) for path in (start.resolve(), *start.resolve().parents)}
    seen: set[tuple[int, int]] = set()
    used: set[str] = set()
    misnamed: list[str] = []
    waiting = deque([str(start)])  # links come after the tree, so that a folder's own name wins
    while waiting:
        for here, folders, names in os.walk(waiting.popleft(), onerror=unreadable):
            if identity(here) in seen:
                folders.clear()
                continue
            seen.add(identity(here))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in folders:
                inner = os.path.join(here, name)
                if os.path.islink(inner) and identity(inner) not in holders:
                    waiting.append(inner)
                if Path(name).suffix.lower() in ENDINGS:
                    misnamed.append(relative(inner))
            for name in names:
                if Path(name).suffix.lower() in ENDINGS and not name.startswith("."):
                    found = relative(os.path.join(here, name))
                    used.update(path.as_posix() for path in Path(found).parents)
                    yield found
    refused += [(name, "a folder, not a file") for name in misnamed if name not in used]


def printable(name: str) -> str:
    """A file name as text that can be written as UTF-8; most names stay as they are.

    Other bytes, such as an accent in another encoding, come from the system as lone surrogates,
    which UTF-8 cannot hold: each becomes a backslash, u and four digits.
    """
    return name.encode("utf-8", "backslashreplace").decode()


def one_line(error: Exception) -> str:
    """An error in one line, without the path that the system's errors name."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(printable(text).split())[:200]
