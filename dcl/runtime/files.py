"""Atomic writing of files, locks, and file systems that lack what both need."""

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

LACKING = {
    *(errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL),
    *(errno.EBADF, errno.EISDIR, errno.ENOTTY, errno.EXDEV, errno.EBUSY),
}
"""What a file system answers that has no locks, cannot flush a folder, or cannot rename a file."""

_warned: set[Path] = set()


def lacking(place: Path, error: OSError) -> None:
    """Go on after an error that means: this file system, that of the folder `place`, has no such
    thing. One warning for a folder and all below it; any other error is raised.
    """
    if error.errno not in LACKING:
        raise error
    folder = Path(os.path.realpath(place))
    if not _warned & {folder, *folder.parents}:
        _warned.add(folder)
        warnings.warn(
            f"the file system of {str(folder)!r} lacks locks, or renames, or flushing to disk "
            f"({error.strerror or error}). dcl goes on without: let no other process write there; "
            "a power cut may lose the latest files",
            stacklevel=3,
        )


def sync(handle: int, place: Path) -> None:
    """Flush a file or folder in the folder `place` to its disk, as far as the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        lacking(place, error)


@contextmanager
def locked(path: Path, timeout: float = -1, *, nested: bool = False) -> Iterator[FileLock]:
    """Hold the lock of a file; `nested`: a thread that holds it may do so again.

    Waits `timeout` seconds, -1: for ever; then filelock.Timeout. On a file system without locks
    nothing is held, with a warning.
    """
    held = FileLock(path, timeout=timeout, is_singleton=nested)
    try:
        held.acquire()
    except OSError as error:  # a Timeout is one, without a number
        lacking(Path(path).parent, error)
        yield held
        return
    try:
        yield held
    finally:
        held.release()


def write_atomic(
    path: str | os.PathLike, *parts: bytes | memoryview, keep: Path | None = None
) -> None:
    """Write `parts` to a temporary file beside `path`, then rename it: all or nothing.

    With `keep`, the existing file is first renamed to that. Raises OSError that says how much was
    to be written and where; the existing file is then still in place. On a file system that cannot
    flush or rename, with a warning: as well as it can.
    """
    path, size = Path(path), sum(len(part) for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():  # renaming would replace a device by a file
            raise OSError(errno.EINVAL, "it exists and is not a file")
        partial.unlink(missing_ok=True)  # by an earlier process with this number
        with open(partial, "xb") as f:  # x: do not follow a link planted in its place
            for part in parts:
                f.write(part)
            f.flush()
            sync(f.fileno(), path.parent)
        if keep:
            _rename(path, keep)
        _rename(partial, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _sync_folder(path.parent)
    except OSError as e:
        text = f"could not write {size:,} bytes to {str(path)!r}: {e.strerror or e}"
        raise OSError(e.errno or errno.EIO, text) from e
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike, name: str, *, file: bool = False) -> None:
    """Refuse a place of output before the work for it: a folder, or a file, perhaps yet to be made.

    Raises ValueError that calls it `name`. A file is written beside its place and renamed, so it
    is the folder that counts.
    """
    what, path = "a folder", Path(path).expanduser()
    if file:
        what, given = "a file in a folder", path
        path = path.resolve()
        if given.exists() and not given.is_file():  # /dev/stdout may resolve to what has no name
            raise ValueError(f"{name} must be the path of a file; got {str(given)!r}")
        path = path.parent
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        link = f" but a link to {os.path.realpath(there)!r}" if there.is_symlink() else ""
        raise ValueError(f"{name} must be {what} that can be written; {str(there)!r} is not{link}")


def _rename(old: Path, new: Path) -> None:
    try:
        os.replace(old, new)
    except OSError as error:
        lacking(new.parent, error)
        shutil.copyfile(old, new)  # a file that is itself a mount can only be filled


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        return lacking(folder, error)
    try:
        sync(handle, folder)  # or a power cut may undo the renaming
    finally:
        os.close(handle)
