"""The images below a folder: their names in order, and those refused without opening them."""

import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ENDINGS = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
ENDINGS |= {".jpe", ".apng", ".dib", ".jp2", ".j2k", ".jpx", ".tga"}
ENDINGS |= {".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif"}  # the last need a recent PIL
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
TEXTS = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html"}
TEXTS |= {".log", ".ini", ".db", ".py", ".sh"}
Bad = tuple[str, str]  # a file and the reason, in one line, why it has no image


class File(NamedTuple):
    """A file as the cache identifies it: with a new size or time it is a new file."""

    name: str
    size: int
    changed: int


def listed(top: Path, parts: list[str]) -> tuple[list[File], list[Bad]]:
    """The images below a folder, sorted part by part, and those left out without opening them.

    An image is a file with one of `ENDINGS`, in upper or lower case, that is not hidden (.name) or
    in a hidden folder. Left out, with the reason, are all other files but texts (`TEXTS`), and
    those hidden ones that have such an ending; of a hidden folder, and of what lies beside the
    parts, there is one line with the number of images.
    """
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
    if parts != [""]:
        refused += _beside(top, parts)
    return files, refused


def _beside(top: Path, parts: list[str]) -> Iterator[Bad]:
    """What a split leaves out: the other folders that hold images, and loose images."""
    reason = f"not in the split {'+'.join(parts)!r}; the split 'all' has it"
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        if entry.is_dir() and entry.name not in parts and (n := _images(entry.path)):
            yield entry.name, f"a folder with {n} image{'s' * (n > 1)} {reason}"
        elif entry.is_file() and Path(entry.name).suffix.lower() in ENDINGS:
            yield entry.name, reason


def _images(folder: str) -> int:
    """How many files below a folder have an image's ending."""
    names = (name for _, _, names in os.walk(folder) for name in names)
    return sum(Path(name).suffix.lower() in ENDINGS for name in names)


def _left_out(path: str) -> str:
    """Why a file is not opened as an image, in one line; empty for a text, which is none."""
    ending, name = Path(path).suffix.lower(), os.path.basename(path)
    if name.startswith("."):
        return "hidden: its name begins with a dot" if ending in ENDINGS else ""
    if os.path.islink(path) and not os.path.exists(path):
        return "broken link"
    if ending in ARCHIVES:
        return "an archive, which is not opened: unpack it"
    if ending in TEXTS:
        return ""
    said = f"its ending, {printable(ending)}, is none of an image's" if ending else "no ending"
    return f"not read as an image: {said}"


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
            for name in folders:
                if _hidden(name) and (n := _images(os.path.join(here, name))):
                    reason = f"a hidden folder with {n} image{'s' * (n > 1)}"
                    refused.append((relative(os.path.join(here, name)), reason))
            folders[:] = sorted(name for name in folders if not _hidden(name))
            for name in folders:
                inner = os.path.join(here, name)
                if os.path.islink(inner) and identity(inner) not in holders:
                    waiting.append(inner)
                if Path(name).suffix.lower() in ENDINGS:
                    misnamed.append(relative(inner))
            for name in names:
                found = relative(os.path.join(here, name))
                if Path(name).suffix.lower() in ENDINGS and not name.startswith("."):
                    used.update(path.as_posix() for path in Path(found).parents)
                    yield found
                elif reason := _left_out(os.path.join(here, name)):
                    refused.append((found, reason))
    refused += [(name, "a folder, not a file") for name in misnamed if name not in used]


def _hidden(folder: str) -> bool:
    return folder.startswith(".") or folder == "__MACOSX"  # left by macOS in the zips it makes


def named(name: str, value: str | os.PathLike) -> Path:
    """The path that an argument names, with ~ for the home folder.

    Raises ValueError for an empty text, such as a variable that is not set: to the system that
    would be the current folder.
    """
    if not str(value).strip():
        kinds = "a folder, a file or a set" if name == "data" else "a folder or a file"
        raise ValueError(f"{name} must name {kinds}; got {str(value)!r}")
    return Path(value).expanduser()


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
