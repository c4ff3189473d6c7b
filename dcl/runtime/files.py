"""Atomic writing of files."""

import errno
import os
from pathlib import Path


def write_atomic(
    path: str | os.PathLike, *parts: bytes | memoryview, keep: Path | None = None
) -> None:
    """Write `parts` to a temporary file beside `path`, then rename it: all or nothing.

    With `keep`, the existing file is first renamed to that. Raises OSError that says how much was
    to be written and where; the existing file is then still in place.
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
            os.fsync(f.fileno())
        if keep:
            os.replace(path, keep)
        os.replace(partial, path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # or a power cut may undo the renaming
            os.close(folder)
    except OSError as e:
        text = f"could not write {size:,} bytes to {str(path)!r}: {e.strerror or e}"
        raise OSError(e.errno or errno.EIO, text) from e
    finally:
        partial.unlink(missing_ok=True)
