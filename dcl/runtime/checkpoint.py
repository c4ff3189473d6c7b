"""Runs that survive: atomic writes, two checkpoints, one writer, one configuration.

A checkpoint is one line of text with the sha256 of the rest, which `torch.save` wrote.
`<stage>.previous.pt` is the one before; at any moment at least one of the two is intact.
Chapter: your-images.
"""

import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from dcl.config import flat
from dcl.runtime import dist
from dcl.runtime.files import check_writable, locked, write_atomic

HEADER = re.compile(rb"dcl checkpoint 1 sha256 ([0-9a-f]{64}) bytes (\d{1,18})\n")
FORMAT = "dcl run 1"
PARTIAL = re.compile(r"\..+\.(\d+)\.partial")


# ---------------------------------------------------------------- the folder of a run


def place(run_dir: str | os.PathLike, stage: str) -> Path:
    """Where a stage's checkpoint is, `<run_dir>/<stage>.pt`.

    Raises ValueError for a stage that is not a plain name: its file could be outside the folder.
    """
    if not re.fullmatch(r"[\w-]+", stage):
        raise ValueError(f"stage must be made of letters, digits, _ and -; got {stage!r}")
    return Path(run_dir) / f"{stage}.pt"


def _alive(pid: int) -> bool:
    try:
        if os.name == "posix":
            os.kill(pid, 0)  # signal 0 only checks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True


def folder(run_dir: str | os.PathLike) -> Path:
    """The folder of a run, created if missing; it may be a link to a folder on another disk.

    Raises ValueError for one that cannot be written, a broken link, or if a file is in the way.
    """
    check_writable(run_dir, "run_dir")
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    return Path(run_dir)


@contextmanager
def lock(run_dir: str | os.PathLike) -> Iterator[None]:
    """Be the only process that writes to `run_dir` during the block.

    May be nested in one thread. The system releases the lock when a process dies, however it dies;
    under torchrun only the first process takes it. Removes partial files of dead processes. Raises
    RuntimeError when another process holds the folder, and ValueError for a link in it that leads
    outside, unless to a folder: a folder such as `checkpoint` may be on another disk. Raises what
    `folder` raises. On a file system without locks nothing is held, with a warning.
    """
    if dist.rank():
        yield
        return
    root = folder(run_dir)
    inside = Path(os.path.realpath(root))
    for entry in root.iterdir():
        leads = Path(os.path.realpath(entry))
        if not leads.is_relative_to(inside) and not leads.is_dir():
            raise ValueError(
                f"{str(entry)!r} is a link to {str(leads)!r}, which is outside run_dir and not a "
                "folder; remove it, or choose another run_dir."
            )
    with ExitStack() as stack:
        try:
            held = stack.enter_context(locked(inside / ".lock", timeout=0, nested=True))
        except Timeout:
            raise RuntimeError(
                f"run_dir {str(run_dir)!r} is in use by another process{_holder(root)}; wait for "
                "it, end it, or choose another run_dir."
            ) from None
        if held.lock_counter <= 1:  # else this is nested; 0: there are no locks
            write_atomic(root / ".pid", f"{os.getpid()}\n".encode())
            for entry in root.iterdir():
                left = PARTIAL.fullmatch(entry.name)
                if left and not _alive(int(left[1])):
                    entry.unlink(missing_ok=True)
        yield


def _holder(root: Path) -> str:
    try:
        pid = int((root / ".pid").read_bytes()[:20])
    except (OSError, ValueError):
        return ""
    return f" ({pid})" if _alive(pid) else ""


def claim(
    run_dir: str | os.PathLike,
    config: Any,
    checksum: str,
    *,
    changed: Callable[[], str] = str,
    **about: Any,
) -> None:
    """Make `run_dir` the folder of this configuration on this data, or refuse it.

    Writes `config.json` on first use, including `about`, which is not compared; what it lacks of
    `about` is added later. Raises ValueError that lists the differences when the folder already
    holds a run with other settings or data (`changed` says how the data differ), ValueError for a
    run of an earlier version or a `config.json` that cannot be read, and what `lock` raises.
    """
    path = Path(run_dir) / "config.json"
    mine = {"config": flat(config), "data": {"checksum": checksum}}
    whole = {"format": FORMAT, **mine, **about}
    with lock(run_dir):
        if not path.exists():
            if dist.rank() == 0:
                write_atomic(path, json.dumps(whole, indent=1).encode())
            return
    try:
        theirs = json.loads(path.read_bytes())
        if not all(isinstance(theirs[part], dict) for part in mine):
            raise TypeError(f"{' and '.join(mine)} must be objects")
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ValueError(
            f"{str(path)!r} is damaged ({type(e).__name__}: {e}), so the settings of the run there "
            "are unknown. Restore it, or choose another run_dir."
        ) from e
    if theirs.get("format") != FORMAT:
        raise ValueError(
            f"run_dir {str(run_dir)!r} holds a run of another version of dcl, which cannot be "
            "resumed. Choose another run_dir, or remove that folder."
        )

    def said(part: dict[str, Any], key: str) -> str:
        return repr(part[key]) if key in part else "no such setting"  # of another version

    differences = [
        f"  {before}{key}: there {said(theirs[part], key)}, now {said(mine[part], key)}"
        for part, before in (("config", ""), ("data", "data."))
        for key in sorted(mine[part].keys() | theirs[part].keys())
        if mine[part].get(key) != theirs[part].get(key)
    ]
    if mine["data"] != theirs["data"]:
        differences += [f"  {line}" for line in changed().splitlines()]
    if differences:
        raise ValueError(
            f"run_dir {str(run_dir)!r} holds a run with other parameters:\n"
            + "\n".join(differences)
            + "\nChoose another run_dir, or remove that folder."
        )
    if about.keys() - theirs.keys() and dist.rank() == 0:
        with lock(run_dir):
            write_atomic(path, json.dumps({**whole, **theirs}, indent=1).encode())


# ---------------------------------------------------------------- checkpoints


def previous(path: str | os.PathLike) -> Path:
    """The path of the checkpoint before the one at `path`: `scan.previous.pt` for `scan.pt`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Save a state of tensors, numbers, strings, lists and dicts; keep the previous checkpoint.

    Raises OSError, as `write_atomic`, and leaves both earlier ones as they are.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    header = f"dcl checkpoint 1 sha256 {sha256(payload).hexdigest()} bytes {len(payload)}\n"
    try:
        _payload(Path(path))
        keep = previous(path)
    except (OSError, ValueError):  # a damaged one must not replace an intact one
        keep = None
    write_atomic(path, header.encode(), payload, keep=keep)


def load(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load what `save` wrote, or the checkpoint before with a warning that says what is wrong.

    Never unpickles code. Raises FileNotFoundError when there is neither, and ValueError when
    neither can be used, or when an intact one holds more than tensors and plain values.
    """
    wrong: list[Exception] = []
    for file in (Path(path), previous(path)):
        try:
            payload = _payload(file)
        except (OSError, ValueError) as e:
            wrong.append(e)
            continue
        if wrong:
            warnings.warn(f"{wrong[0]}; {str(file)!r} is used instead", stacklevel=2)
        try:
            return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
        except Exception as e:  # torch's own message suggests running the code
            raise ValueError(
                f"{str(file)!r} was not written by dcl: it does not load as tensors and plain "
                f"values ({type(e).__name__}). It may contain code, which was not run; remove it."
            ) from None
    if all(isinstance(e, FileNotFoundError) for e in wrong):
        raise wrong[0]
    raise ValueError(
        f"no checkpoint to resume from: {'; '.join(map(str, wrong))}. Restore one from a copy, or "
        "remove both: then this stage starts again."
    )


def _payload(file: Path) -> bytes:
    """The bytes after the header, verified against it. ValueError says what is wrong."""
    with open(file, "rb") as f:
        header = HEADER.fullmatch(f.readline(200))
        payload = f.read()
    name = repr(str(file))
    if not header:
        raise ValueError(f"{name} is damaged: it has no checkpoint header")
    if len(payload) != (size := int(header[2])):
        raise ValueError(f"{name} is damaged: it has {len(payload):,} of {size:,} bytes")
    if sha256(payload).hexdigest() != header[1].decode():
        raise ValueError(f"{name} is damaged: its checksum does not match its {size:,} bytes")
    return payload
