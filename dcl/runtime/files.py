"""Whole files or none."""

import errno
import os
from pathlib import Path


def write_atomic(
    path: str | os.PathLike, *parts: bytes | memoryview, keep: Path | None = None
) -> None:
    """Write `parts` to a temporary file beside `path`, then rename: whole, or not at all.

    With `keep`, the file that is at `path` gets that name a moment before. Raises OSError that
    says how much was to be written and where; what was there is then still there.
    """
    path, size = Path(path), sum(len(part) for part in parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():  # renaming would put a file in a device's place
            raise OSError(errno.EINVAL, "what is there is no file")
        partial.unlink(missing_ok=True)  # of an earlier process with this number
        with open(partial, "xb") as f:  # x: a link laid in its place is not followed
            for part in parts:
                f.write(part)
            f.flush()
            os.fsync(f.fileno())
        if keep:
            os.replace(path, keep)
        os.replace(partial, path)
        if os.name == "posix":  # elsewhere a folder can not be opened
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # else a power cut may undo the renaming
            os.close(folder)
    except OSError as e:
        text = f"could not write {size:,} bytes to {str(path)!r}: {e.strerror or e}"
        raise OSError(e.errno or errno.EIO, text) from e
    finally:
        partial.unlink(missing_ok=True)
