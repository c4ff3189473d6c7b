"""Weights from files that other programs wrote: read without running code, fitted to a network."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PREFIXES = ("module.", "state_dict.", "network.", "encoder_q.", "backbone.", "encoder.", "model.")
"""Prefixes that other programs put before the names of a network's weights."""


def read(path: Path) -> Any:
    """A file of weights as Python objects; runs no code from it."""
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{os.fspath(path)} must hold tensors only; it is damaged, or contains code, which was "
            "not run. Save only the state dict: torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as weights: {error}") from error


def fitting(
    state: Any, network: nn.Module, classifier: str, name: str, path: Path
) -> dict[str, Tensor]:
    """The network's entries of a file, under its names; ValueError if they do not fit."""
    wanted = network.state_dict()
    for key in ("state_dict", "model", "teacher"):  # checkpoints of training programs
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} must hold a state dict; got {type(state).__name__}")
    while not wanted.keys() & state.keys():
        found = [p for p in PREFIXES if any(key.startswith(p) for key in state)]
        if not found:
            break
        state = {k.removeprefix(found[0]): v for k, v in state.items() if k.startswith(found[0])}
    heads = (classifier + ".", classifier.split(".")[0] + ".")
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}  # absent in old files
    faults = {
        "missing": [k for k in wanted if k not in state and k not in counters],
        "not of this network": [k for k in state if k not in wanted and not k.startswith(heads)],
        "of another shape": [
            f"{k} {tuple(getattr(state[k], 'shape', ()))} instead of {tuple(v.shape)}"
            for k, v in wanted.items()
            if k in state and getattr(state[k], "shape", None) != v.shape
        ],
    }
    if not any(faults.values()):
        faults = {"not finite": [k for k in wanted.keys() & state if not _finite(state[k])]}
    if any(faults.values()):
        told = (
            f"{len(keys)} {fault}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
            for fault, keys in faults.items()
            if keys
        )
        raise ValueError(f"{path} does not hold the weights of {name}; {'; '.join(told)}")
    return {key: state.get(key, value) for key, value in wanted.items()}


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
