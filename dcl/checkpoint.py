"""Runs that survive: atomic checkpoints, and a folder that belongs to one configuration."""

import io
import json
import os
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch


def write_atomic(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, then rename: whole, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def claim(run_dir: str | os.PathLike, config: Any, checksum: str) -> None:
    """Make `run_dir` the folder of this configuration on this data, or refuse it.

    Writes `config.json` on first use. Raises ValueError with the differences listed
    when the folder already holds a run with other settings or other data.
    """
    path = Path(run_dir) / "config.json"
    mine = {"config": flat(config), "data": {"checksum": checksum}}
    if not path.exists():
        write_atomic(path, json.dumps(mine, indent=1).encode())
        return
    theirs = json.loads(path.read_text())
    differences = [
        f"  {part}.{key}: there {theirs[part].get(key)!r}, now {mine[part].get(key)!r}"
        for part in mine
        for key in sorted(mine[part].keys() | theirs[part].keys())
        if mine[part].get(key) != theirs[part].get(key)
    ]
    if differences:
        raise ValueError(
            f"run_dir {str(run_dir)!r} holds a run with other parameters:\n"
            + "\n".join(differences)
            + "\nChoose another run_dir, or remove that folder."
        )


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as one flat, JSON-ready dict: {"train.lr": 0.1, ...}."""
    items = asdict(config) if is_dataclass(config) and not isinstance(config, type) else config
    result: dict[str, Any] = {}
    for key, value in items.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return result


def random_state() -> dict[str, Any]:
    """The state of torch's default generators, on the CPU and on every GPU."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Save a state of tensors, numbers, strings, lists and dicts atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load(path: str | os.PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Load what `save` wrote. Never unpickles code."""
    return torch.load(path, map_location=device, weights_only=True)
