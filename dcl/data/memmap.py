"""Decoded images in a memory-mapped file: data sets larger than memory, decoded once."""

import errno
import hashlib
import json
import mmap
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Generator
from contextlib import closing
from math import prod
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from dcl.runtime.files import locked, sync

VERSION = 2  # of the file format and the decoding: with a new number all images are decoded anew
BUDGET = 2**30
Block = tuple[np.ndarray, dict[int, str]]  # images (B,C,H,W), and notes by number: why missing
Blocks = Generator[Block, None, None]
MAPPED: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by address, while in use


def budget(given: int | None = None) -> int:
    """Bytes of pixels that are kept in memory: given, else $DCL_CACHE_BYTES, else 1 GiB.

    Raises ValueError for anything but an integer of at least 0.
    """
    name, value = "cache_bytes", BUDGET if given is None else given
    if given is None and (text := os.environ.get("DCL_CACHE_BYTES")):
        name, value = "DCL_CACHE_BYTES", int(text) if text.isdecimal() else text  # type: ignore
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of bytes, at least 0; got {value!r}")
    return value


def key(*parts: object) -> str:
    """32 hex digits for what the images come from, with the version of this file's format."""
    text = json.dumps([VERSION, *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def stored(
    place: Path, key: str, size: int, shape: tuple[int, ...], blocks: Blocks
) -> tuple[Tensor, dict[int, str]]:
    """Images uint8 (N,*shape), mapped from a file, and the reasons for those that are missing.

    Returns what an earlier call left in `place` under the same key, without touching `blocks`;
    else writes their images one after the other, at most `size` bytes. The tensor is an ordinary
    one: the system pages in what is read and drops it when memory is short, and what is written to
    the tensor stays in memory and never reaches the file. A file whose length or CRC-32 is wrong
    is reported in a warning and made anew. One process writes at a time, the others wait and share
    the file. Anything in `place` may be deleted between runs.

    Raises OSError when the file cannot be written; then nothing is left of it.
    """
    if found := _open(place, key):
        return found
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / "lock"):
            for left in place.glob("*.partial"):  # by a process that was killed: we hold the lock
                left.unlink()
            found = _open(place, key)  # perhaps another process has just made it
            if found is None:
                _write(place, key, size, shape, blocks)
                found = _open(place, key)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the decoded images, {size / 2**20:.1f} MiB, cannot be kept in {place}: "
            f"{error.strerror or error}. Make room there, or choose another folder with the "
            "variable DCL_DATA or root=, or raise cache_bytes to keep them in memory",
        ) from error
    if found is None:
        raise OSError(errno.EIO, f"what was written to {place / key}.images cannot be read back")
    return found


def _open(place: Path, key: str) -> tuple[Tensor, dict[int, str]] | None:
    """What is stored under a key; None when it is missing or damaged."""
    images, notes = place / f"{key}.images", place / f"{key}.json"
    if not images.exists() or not notes.exists():
        return None
    try:
        note = json.loads(notes.read_bytes())
        shape, reasons = note["shape"], {int(k): why for k, why in note["reasons"].items()}
        whole = images.stat().st_size == prod(shape) and _crc(images) == note["crc32"]
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        warnings.warn(f"{images} is damaged: the images are decoded again", stacklevel=2)
        return None
    return torch.from_numpy(_mapped(images).reshape(shape)), reasons


def _crc(path: Path) -> int:
    """CRC-32 of a file; read, not mapped, so that it uses no resident memory."""
    value = 0
    with path.open("rb") as file:
        while part := file.read(2**22):
            value = zlib.crc32(part, value)
    return value


def _mapped(path: Path) -> np.ndarray:
    """The bytes of a file as a private, writable array: np.memmap's mode "c", of any length.

    Linux refuses a private mapping larger than memory and swap together unless told to reserve
    no space for writing to it.
    """
    with path.open("rb") as file:
        if sys.platform == "linux":
            reserve_nothing = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named since Python 3.13
            memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | reserve_nothing)
        else:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    array = np.frombuffer(memory, np.uint8)
    MAPPED[array.ctypes.data] = memory
    return array


def forget(images: object) -> None:
    """Release the memory that caches the file of `stored` images; it is read again when needed.

    The system would do so when memory is short, but a long-running reader need not wait for that.
    Does nothing for other images, for images that have been written to (the changes are only in
    memory), and on systems other than Linux.
    """
    if not (sys.platform == "linux" and isinstance(images, Tensor)) or images.is_cuda:
        return
    start = images.data_ptr()
    memory = MAPPED.get(start)
    if memory is not None and not _written(start):
        memory.madvise(mmap.MADV_DONTNEED)


def _written(start: int) -> bool:
    """Whether pages of the mapping that begins at an address have been written to."""
    with open("/proc/self/smaps") as maps:
        for line in maps:
            if line.startswith(f"{start:x}-"):
                amount = next(line for line in maps if line.startswith("Anonymous:"))
                return int(amount.split()[1]) > 0
    return True  # unknown


def _write(place: Path, key: str, size: int, shape: tuple[int, ...], blocks: Blocks) -> None:
    """Write images and notes under temporary names, then rename both: all or nothing."""
    if (free := shutil.disk_usage(place).free) < size:
        raise OSError(errno.ENOSPC, f"only {free / 2**20:.1f} MiB are free")
    images, notes = place / f"{key}.images.partial", place / f"{key}.json.partial"
    crc, n = 0, 0
    reasons: dict[int, str] = {}
    try:
        # written, not mapped: a full disk then raises an error instead of killing the process
        with closing(blocks), images.open("wb") as file:
            for pixels, bad in blocks:
                file.write(pixels.data)
                crc, n, reasons = zlib.crc32(pixels.data, crc), n + len(pixels), reasons | bad
            file.flush()
            sync(file.fileno(), place)
        note = {"shape": [n, *shape], "crc32": crc, "reasons": reasons}
        with notes.open("w") as file_of_notes:
            json.dump(note, file_of_notes)
            file_of_notes.flush()
            sync(file_of_notes.fileno(), place)
        os.replace(images, images.with_suffix(""))
        os.replace(notes, notes.with_suffix(""))
    finally:
        images.unlink(missing_ok=True)
        notes.unlink(missing_ok=True)
