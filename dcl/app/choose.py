"""How many clusters? Features by whatever is at hand, then `dcl.measure.n_clusters.choose_k`."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcl.app import run
from dcl.app.monitors import Log, all_of
from dcl.app.source import Source, side
from dcl.config import changed, check_whole, with_rows
from dcl.data import Data
from dcl.data.arrays import is_vectors
from dcl.data.files import named
from dcl.measure.n_clusters import Choice, choose_k
from dcl.methods import simclr
from dcl.nets.features import features
from dcl.nets.pretrained import check_name
from dcl.objective import Monitor
from dcl.recipes import choose as choose_recipe
from dcl.recipes import recipe
from dcl.runtime.device import pick_device
from dcl.train import extract, unit


def choose(
    data: str, encoder: str = "", size: int = 0, split: str = "", limit: int = 0, most: int = 20,
    seed: int = 0, device: str = "auto", tell: Callable[[str], object] | None = warnings.warn,
) -> Choice:  # fmt: skip
    """How many clusters are in a folder, a data set, vectors, or the embeddings of a run folder.

    encoder: as in `dcl.app.run.fit`, its features being computed once and kept;
    "pixels"; or empty: then SimCLR is trained twice, on at most 4,000 images, and both embeddings
    count. Vectors are used as they are. tell: as in `Source.load`. Raises as `choose_k`. Chapter:
    your-images.
    """
    place = pick_device(device)
    check_whole("seed", seed, 0)
    if most < 3:
        raise ValueError(f"most must be at least 3, for there to be a choice; got {most}")
    if (named("data", data) / "config.json").is_file():
        found, (_, known) = run.clusters(data, device=device), run.located(data)
        z: Any = found.assign(known.images.to(place)).vectors
        return _swept(z, len(z), most, seed)
    learned = encoder not in ("", "pixels")
    if learned:
        check_name(encoder)
    most_images = limit or (0 if encoder or is_vectors(data) else 4000)
    images = Source(data, split, side(data, size, encoder if learned else ""), most_images).load(
        tell=tell
    )
    _enough(images)
    if learned:
        z = _seen(encoder, images, place)
    elif encoder or images.vectors:
        z = unit(images.images).flatten(1)
    else:
        name = choose_recipe("simclr", data, "quick", gray=images.channels == 1)
        asked = recipe("simclr", name)
        config = with_rows(asked, len(images))
        if tell and (less := changed(asked, config)):
            tell(f"to fit {len(images)} images: {less}")
        shown = images.images.to(place)
        looks = [simclr.fit(shown, replace(config, seed=seed + k)) for k in range(2)]
        z = [extract(look.embed, shown) for look in looks]
    return _swept(z, len(images), most, seed)


def for_fit(
    images: Data, encoder: str, config: Any, out: Path, device: str, monitor: Monitor | None
) -> Choice:
    """How many clusters for the fit that is to follow, on what it begins with.

    That is the features of the encoder, or the vectors themselves, or else the SimCLR of `config`,
    which is trained in the run folder `out`, where the fit finds it again. Raises as `choose`.
    """
    place = pick_device(device)
    _enough(images)
    if encoder:
        z = _seen(encoder, images, place)
    elif images.vectors:
        z = images.images
    else:
        first = replace(config.pretext, seed=config.seed)
        shown, log = images.images.to(place), Log(every=0, run_dir=out)
        follow = all_of(log, monitor)
        pretext = simclr.fit(shown, first, monitor=follow, run_dir=out / "pretext")
        z = extract(pretext.embed, shown)
    return _swept(z, len(images), 20, config.seed)


def _enough(images: Data) -> None:
    if len(images) < (fewest := 6):  # at most half as many clusters: 2 and 3
        raise ValueError(f"data must have at least {fewest} {images.noun}s; got {len(images)}")


def _seen(encoder: str, images: Data, place: torch.device) -> Tensor:
    """The features of the images by a named encoder, computed once and kept."""
    network, _ = run.encoder_of(encoder, images)
    assert network is not None
    return features(network.to(place), images.images)


def _swept(z: Any, n: int, most: int, seed: int) -> Choice:
    """`choose_k` with at most half as many clusters as rows, n; errors speak of the data."""
    try:
        return choose_k(z, range(2, min(most, n // 2) + 1), seed=seed)
    except ValueError as error:
        raise ValueError(f"data must have features that can be clustered: {error}") from error
