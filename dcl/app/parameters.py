"""The parameters of the estimator, checked before any work."""

from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import nn

from dcl import methods
from dcl.app.source import SMALLEST
from dcl.config import check_type, check_whole, flat
from dcl.nets.pretrained import check_name
from dcl.recipes import recipe, recipes
from dcl.runtime.device import pick_device
from dcl.runtime.files import check_writable


def check_parameters(e: Any) -> int:
    """Check the parameters of a `dcl.app.estimator.DeepClusterer`; returns its seed.

    random_state as everywhere in scikit-learn: an integer, a RandomState, or None. Raises
    TypeError or ValueError naming the parameter, what came and what was expected.
    """
    for name in "method", "recipe":
        check_type(name, getattr(e, name), str)
    config = methods.method(e.method).Config  # its error names the known ones
    if e.recipe != "auto":
        recipe(e.method, e.recipe)
    check_whole("n_clusters", e.n_clusters, 2)
    check_whole("size", e.size, SMALLEST, NoneType)
    check_whole("epochs", e.epochs, 1, NoneType)
    check_type("encoder", e.encoder, str, nn.Module, NoneType)
    if isinstance(e.encoder, str) and e.encoder:
        check_name(e.encoder)
    if e.config is not None and not isinstance(e.config, config):
        raise TypeError(f"config must be a {config.__module__}.Config or None; got {e.config!r}")
    check_type("device", e.device, str, torch.device)
    pick_device(e.device)
    check_type("run_dir", e.run_dir, str, Path, NoneType)
    if e.run_dir is not None:
        check_writable(e.run_dir, "run_dir")
    check_whole("random_state", e.random_state, 0, np.random.RandomState, NoneType)
    if isinstance(e.random_state, Integral):
        return int(e.random_state)
    return int(check_random_state(e.random_state).randint(2**31))


def chosen_by_hand(e: Any) -> dict[str, str]:
    """The settings in `config` that no recipe of the method has, by dotted name."""
    kept = [flat(found) for found in recipes(e.method).values()]
    own = {} if e.config is None else flat(e.config)
    return {k: f"config.{k}" for k, v in own.items() if all(r.get(k) != v for r in kept)}
