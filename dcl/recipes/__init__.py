"""Settings by data set."""

from typing import Any

from dcl.data.vectors import is_vectors


def recipe(module: Any, data: str, encoder: bool, device: str, vectors: bool = False) -> str:
    """The recipe that fits: of a method's PROFILES, for a set's name or a folder, and a device.

    A method without a recipe for photographs, or for vectors, has "quick".
    """
    own = ["frozen", "gpu", "photos"] if encoder else ["gpu"] * (device == "cuda") + ["photos"]
    if data in ("digits", "shapes"):
        own = [f"quick-{data}"]
    elif vectors or is_vectors(data):
        own = ["vectors"]
    return next(p for p in (*own, "quick") if p in module.PROFILES)
