"""Where downloads are kept, and downloading a torchvision data set once, checked and complete."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any


def data_root(root: str | Path | None = None) -> Path:
    """Download folder: root, else $DCL_DATA, else the checkout's data/, else ~/.cache/dcl."""
    if root or os.environ.get("DCL_DATA"):
        return Path(root or os.environ["DCL_DATA"]).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    return Path("~/.cache/dcl").expanduser()


@contextmanager
def answered_within(seconds: float) -> Iterator[None]:
    """Within it, a network that does not answer for so long counts as none: an OSError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def download(name: str, dataset: Any, root: Path, folder: str) -> None:
    """Download a data set into a temporary folder inside root, then move its files into place.

    dataset: torchvision's class, which knows URLs and checksums; folder: where below root it looks
    for its files. Each move is an atomic rename: an interruption leaves no partial file, and two
    processes at once end with the same files. An archive already put into place by hand is used
    instead of the network. Raises FileNotFoundError, which says what to do, when there is no
    network, a checksum is wrong, the disk is full or root cannot be written to.
    """
    resources = getattr(dataset, "resources", None)  # the MNISTs: one archive for each file
    archives = [f"{folder}/{file}" for file, _ in resources] if resources else [dataset.filename]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as temporary:
            work = Path(temporary)
            for archive in archives:
                if (root / archive).is_file():
                    (work / archive).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(root / archive, work / archive)
            with answered_within(30):
                dataset(work, download=True)
            for file in sorted(work.rglob("*")):
                place = file.relative_to(work)
                if file.is_file() and place.as_posix() not in archives:
                    (root / place).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, root / place)
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        reason = str(error).strip()
        raise FileNotFoundError(
            f"{name} is missing or incomplete in {root / folder} and could not be downloaded: "
            f"{reason}. "
            "On a connected machine run\n"
            f"    python -c \"from dcl.data import load; load('{name}', root='somewhere')\"\n"
            f"and copy somewhere/{folder} to {root / folder}; or, if the files are elsewhere, set "
            f"the variable DCL_DATA, or root=, to the folder that contains {folder}"
        ) from error
