"""Settings by data set: a file per method, a recipe per data set, and the rule that chooses."""

import importlib
import pkgutil
from dataclasses import is_dataclass
from typing import Any

from dcl.data.arrays import is_vectors

EMBEDDED = ("digits", "shapes", "people", "photographs")
GRAY = ("digits", "mnist", "fashion-mnist")
"""Data sets of one channel; for a folder or tensor this is unknown until it is read."""


def recipes(method: str) -> dict[str, Any]:
    """The recipes of a method by name: {"digits": Config(...), ...}. Raises ValueError."""
    known = [found.name for found in pkgutil.iter_modules(__path__)]
    if method not in known:
        raise ValueError(f"method must be one of {', '.join(known)}; got {method!r}")
    module = importlib.import_module(f"dcl.recipes.{method}")
    found = {name: value for name, value in vars(module).items() if is_dataclass(value)}
    return {name: value for name, value in found.items() if isinstance(value, module.Config)}


def recipe(method: str, name: str) -> Any:
    """One recipe. Raises ValueError for a name that the method does not have."""
    known = recipes(method)
    if name not in known:
        raise ValueError(f"recipe must be one of {', '.join(known)}; got {name!r}")
    return known[name]


def choose(
    method: str,
    data: str = "",
    profile: str = "",
    *,
    gray: bool | None = None,
    encoder: bool = False,
    vectors: bool = False,
    device: str = "cpu",
) -> str:
    """The name of the recipe that fits: the data set's own, or that of the most similar one.

    data: a data set's name, perhaps with a split, a folder or a .npy file, or "" for a tensor;
    gray: whether its images have one channel (None: by name); vectors: whether it holds vectors.
    profile, the chapters': smoke and paper name a recipe; quick uses at most 10,000 images (for
    which a method may have a recipe of its own, mnist_10k), gpu all of them; "" is the command
    line, with the whole data set. For photographs that is frozen, heads on the features of
    `encoder`, or cifar10 with an `encoder`; cifar10 on a GPU; photos, a small network, on a CPU.
    Vectors are features: frozen where the method has it, else digits.
    """
    own = data.split(":")[0]
    gray = own in GRAY if gray is None else gray
    if profile in ("smoke", "paper"):
        wanted = [profile]
    elif own in EMBEDDED and profile != "gpu":
        wanted = [own] + ["frozen"] * (own == "photographs")
    elif vectors or is_vectors(data):
        wanted = ["frozen"]
    elif profile == "quick":
        wanted = [f"{own}_10k", "digits" if gray else "photos"]
    elif gray and not encoder:
        wanted = ["mnist"]
    elif profile == "gpu":
        wanted = ["cifar10"]
    else:
        large = encoder or device == "cuda"
        wanted = ["frozen"] * encoder + ["cifar10"] * large + ["photos"]
    known = recipes(method)
    return next(name for name in (*wanted, "digits") if name in known)
