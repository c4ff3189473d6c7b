"""What every `fit` does before its algorithm."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dcl.config import TrainConfig
from dcl.data import Data
from dcl.runtime import checkpoint


def check_fit(
    images: Any, config: Any, run_dir: str | Path | None = None, encoder: nn.Module | None = None
) -> None:
    """Refuse what can not be trained on, before any work: called first in every `fit`.

    Raises TypeError or ValueError naming the argument, what came and what was expected;
    with `run_dir`, claims it for this configuration and these images. With an `encoder` the
    pretext, which is not trained then, is not looked at. Vectors (N,d) are for the methods whose
    Config has ``takes_vectors = True``: the one place where a method says so.
    """
    data = Data(images, None, None, name="images", split="all")  # holds dtype and shape
    if data.vectors and not getattr(config, "takes_vectors", False):
        method = type(config).__module__.rpartition(".")[2]
        raise ValueError(f"{method} needs images (N,C,H,W); got vectors {tuple(images.shape)}")
    n, k = len(images), getattr(config, "n_clusters", None)
    number = f"number of {data.noun}s, {n}"
    if k is not None and not 2 <= k <= n:
        raise ValueError(f"n_clusters must be between 2 and the {number}; got {k}")
    for stage, value in ((f.name, getattr(config, f.name)) for f in fields(config)):
        if isinstance(value, TrainConfig) and value.epochs and value.batch_size > n:
            raise ValueError(
                f"{stage}.batch_size must be at most the {number}; got {value.batch_size}"
            )
        if encoder is None and is_dataclass(value) and not isinstance(value, type | TrainConfig):
            check_fit(images, value)
    if run_dir:
        checkpoint.claim(run_dir, config, data.checksum)
