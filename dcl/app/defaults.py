"""`dcl fit` without a method: what is taken for the images that are there, and why.

On a folder of photographs heads are trained on the features of a pretrained network, if one can be
had: recorded runs of 10,000 photographs reach an ACC of .34 at best from scratch (book/results.md),
and k-means alone more on such features (chapter photographs).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from dcl.app.choose import for_fit
from dcl.app.monitors import Bar
from dcl.app.settings import settings
from dcl.config import epochs_of
from dcl.data import Data
from dcl.data.arrays import is_vectors
from dcl.nets.libraries import TIMM
from dcl.nets.names import check_name, kept
from dcl.nets.pretrained import pretrained
from dcl.runtime import dist

METHOD = "scan"
"""From scratch it has the best recorded ACC on photographs, .342 on CIFAR-10 (JPEG q75), SwAV .334;
on features its heads take seconds; TEMI has more there on average, but by less than its own seeds
are apart (chapter photographs)."""

ENCODERS = {
    "timm/vit_small_patch14_dinov2.lvd142m@224": "trained without labels",
    "resnet50": "trained with the labels of ImageNet",
}
"""The first whose weights are on this machine, else the first that can be downloaded."""

FEW = 10
"""With fewer images a cluster there is a line that says so; no such number is chosen."""

VARIABLE = "DCL_ENCODER"
"""Names another, as `--encoder` does: with weights in a file, where nothing can be downloaded."""


def method(
    data: str, encoder: str, clusters: int, out: Path, tell: Callable[[str], object]
) -> tuple[str, list[str]]:
    """The method for a place of images or vectors, and further flags: an encoder, if one is found.

    encoder, clusters: what was asked for, "" and 0: nothing; out: if a run was begun there, it is
    the one to go on with; tell: called with what is chosen, and why. Raises as `check_name` for a
    name in $DCL_ENCODER.
    """
    if (out / "config.json").is_file():
        s = settings(out)
        tell(f"no method was named: {s.method}, as the run in {out} was begun")
        flags = ["--encoder", s.encoder] if s.encoder and not encoder else []
        return s.method, flags + ([] if clusters else ["--clusters", str(s.config.n_clusters)])
    if encoder or not Path(data.removeprefix("folder:")).expanduser().is_dir():
        on = f"on the features of {encoder}" if encoder else "from scratch"
        tell(f"no method was named: {METHOD}, {'on vectors' if is_vectors(data) else on}")
        return METHOD, []
    found, why = pretrained_one(tell)
    if not found:
        tell(f"no method was named: {METHOD}, from scratch, since {why}")
        return METHOD, []
    tell(f"no method was named: {METHOD}, on the features of {found} ({why})")
    return METHOD, ["--encoder", found]


def clusters(
    data: Data, encoder: str, config: Any, out: Path, device: str, tell: Callable[[str], object]
) -> int:
    """The number of clusters that `for_fit` proposes; the recipe's if it finds no structure.

    tell: called with the number and how sure it is.
    """
    learns = not encoder and not data.vectors
    bar = Bar(epochs_of(config.pretext)) if learns else None
    found = for_fit(data, encoder, config, out, device, bar)
    if bar:
        bar.close()
    if found.sure != "no structure":
        tell(f"{found.best} clusters: {found.sentence}")
        return found.best
    k = max(2, min(config.n_clusters, len(data) // FEW))
    tell(f"{k} clusters, for a start: {found.sentence} (Too many is the safer mistake.)")
    return k


def pretrained_one(tell: Callable[[str], object]) -> tuple[str, str]:
    """The name of a pretrained network that can be had, and why it; ("", why not) if there is none.

    tell: called before a download. Raises as `check_name` for a name in $DCL_ENCODER.
    """
    if own := os.environ.get(VARIABLE, ""):
        check_name(own)
        return own, f"named by {VARIABLE}"
    known = [name for name in ENCODERS if _known(name)]
    with dist.main_process_first():
        for name in filter(kept, known):
            return name, f"{ENCODERS[name]}; its weights are on this machine"
        for name in filter(_answers, known):
            tell(f"downloading the weights of {name}, which are not on this machine")
            try:
                pretrained(name)
                return name, f"{ENCODERS[name]}; its weights were downloaded"
            except FileNotFoundError:
                continue
    return "", (
        f"the weights of {' and '.join(known)} are not on this machine, and could not be "
        "downloaded. Expect less than with a pretrained network; --encoder NAME:FILE names one"
    )


def _known(name: str) -> bool:
    try:
        return bool(check_name(name))
    except ValueError:  # without timm, or with one that is too old
        return False


def _answers(name: str) -> bool:
    """Whether the place of a network's weights answers: timm's tries it ten times, for a minute."""
    if not name.startswith(TIMM):
        return True  # torchvision's says at once that it cannot be reached
    from huggingface_hub.constants import ENDPOINT

    try:
        urlopen(Request(ENDPOINT, method="HEAD"), timeout=10).close()
    except HTTPError:  # an answer
        return True
    except OSError:
        return False
    return True
