"""One file per paper: each has a `Config`, its losses, its objective and `fit`."""

import importlib
import pkgutil
import re
from types import ModuleType


def methods() -> dict[str, ModuleType]:
    """The clustering methods by name: the files in `dcl/methods` whose Config has n_clusters."""
    stems = [m.name for m in pkgutil.iter_modules(importlib.import_module("dcl.methods").__path__)]
    found = {stem: importlib.import_module(f"dcl.methods.{stem}") for stem in stems}
    return {s: m for s, m in found.items() if hasattr(getattr(m, "Config", None), "n_clusters")}


def method(name: str) -> ModuleType:
    """The module of a clustering method. Raises ValueError for an unknown name."""
    known = methods()
    if name not in known:
        raise ValueError(f"method must be one of {', '.join(known)}; got {name!r}")
    return known[name]


def chapter_of(name: str) -> str:
    """The chapter that explains a file of `dcl/methods`: the first one that its docstring names."""
    doc = importlib.import_module(f"dcl.methods.{name}").__doc__ or ""
    found = re.search(r"\b[Cc]hapter:? ([\w-]+)", doc)
    if not found:
        raise ValueError(f"the docstring of dcl/methods/{name}.py must name its chapter")
    return found[1]


def for_vectors(name: str) -> None:
    """Raise ValueError unless a method takes plain vectors (N,d): its Config says so."""
    takers = [s for s, m in methods().items() if getattr(m.Config, "takes_vectors", False)]
    if name not in takers:
        raise ValueError(
            f"method {name} needs images; got vectors (N,d), taken by {', '.join(takers) or 'none'}"
        )
