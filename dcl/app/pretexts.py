"""Trained pretexts that come with the package: several methods can begin with the very same one.

SimCLR on the digits, seeds 0 to 4, and on the 10,000 MNIST images of the chapters' profile quick,
seeds 0 to 2 (`book/pretexts.py` makes them). Each is a safetensors file whose metadata tell what it
is; reading one runs no code.
"""

import importlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from dcl.app.clusters import WEIGHTS
from dcl.config import flat, unflat
from dcl.data import Data
from dcl.objective import Objective
from dcl.runtime.files import write_atomic

FORMAT = "dcl pretext 1"
PRETEXTS = WEIGHTS / "pretexts"


def stored(images: Tensor, config: Any) -> Objective | None:
    """The pretext in the package that `fit(images, config)` would give, or None if none does.

    images uint8 (N,C,H,W) and config, such as a `simclr.Config`, must be those that it was trained
    with, seed included. On the device of the images, in eval mode; free to be trained on.
    """
    from safetensors import safe_open

    checksum = _checksum(images)
    for path in sorted(PRETEXTS.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            about = file.metadata()
            module = importlib.import_module(f"dcl.methods.{about['method']}")
            same = about["images"] == checksum and isinstance(config, module.Config)
            if same and unflat(module.Config, json.loads(about["config"])) == config:
                model = module.model(images, config)
                model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
                return model.to(images.device).eval()
    return None


def save(pretext: Objective, images: Tensor, path: str | Path, **about: str) -> None:
    """Write what `fit(images, pretext.config)` has returned, for `stored`; about: metadata."""
    from safetensors.torch import save as packed

    state = {k: v.detach().cpu().contiguous() for k, v in pretext.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "method": type(pretext).__module__.rpartition(".")[2],
        "config": json.dumps(flat(pretext.config)),
        "images": _checksum(images),
        **about,
    }
    write_atomic(Path(path), packed(state, metadata))


def _checksum(images: Tensor) -> str:
    return Data(images, None, None, name="images", split="all").checksum
