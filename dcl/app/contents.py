"""Which images a run was trained on, one by one, so that a change can be named."""

import zlib
from collections.abc import Sequence
from pathlib import Path

from dcl.app.assignments import csv_bytes, names, read_csv
from dcl.data import Data
from dcl.runtime.files import write_atomic

NAMED = 5
"""So many files are named, the others counted."""


def write(path: Path, data: Data) -> None:
    """Write a CSV file with the name (for vectors the row) and the CRC-32 of every image."""
    write_atomic(path, csv_bytes(("file", "crc32"), _rows(data).items()))


def changes(path: Path, data: Data) -> str:
    """How images differ from those that `write` wrote, in lines; empty when it wrote none."""
    if not path.exists():
        return ""
    before = {name: crc for name, crc in read_csv(path, "file", "crc32")}  # noqa: C416
    now = _rows(data)
    both = before.keys() & now.keys()
    found = {
        "came": sorted(now.keys() - before.keys()),
        "went": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in both if before[name] != now[name]),
    }
    nouns = f"{data.noun}s"
    lines = [f"{nouns} that {what}: {_some(names)}" for what, names in found.items() if names]
    return "\n".join(lines) or f"{nouns} are in another order"


def _rows(data: Data) -> dict[str, str]:
    images = (data.images[row].cpu().contiguous().numpy().data for row in range(len(data)))
    return {name: f"{zlib.crc32(image):08x}" for name, image in zip(names(data), images)}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} others" if len(names) > NAMED else ""
    return f"{len(names)} ({', '.join(names[:NAMED])}{more})"
