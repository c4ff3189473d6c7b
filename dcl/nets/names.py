"""The names of pretrained networks: which library, which size, which file::

    resnet50                       torchvision's, with its ImageNet weights
    timm/vit_small_patch14_dinov2  timm's, with its weights (`dcl encoders` lists both)
    NAME@224                       at another size than the network's own
    NAME:weights.pth               with the weights in a local file, .pth or .safetensors
    mynet:build                    what your function returns: images in [0,1] to features (B,D)
    NAME,NAME                      both, their features side by side

Nothing here builds a network; `dcl.nets.pretrained` does.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import NamedTuple

from torch import nn

from dcl.nets.libraries import TIMM, TORCHVISION, cached, settings, timm_settings


class Name(NamedTuple):
    """One network's name, in parts."""

    network: str
    """Of torchvision, of timm with the prefix `timm/`, or a module of your own."""
    size: int = 0
    """Asked for; 0: the network's own."""
    file: str = ""
    """Of weights; empty: the library's."""
    function: str = ""
    """Of your own module."""

    def __str__(self) -> str:
        size, after = f"@{self.size}" if self.size else "", self.function or self.file
        return f"{self.network}{size}{after and ':' + after}"


def parts(names: str) -> list[Name]:
    """The networks of names separated by commas; of "" none. ValueError for what is no name."""
    return [_part(name) for name in names.split(",")] if names else []


def _part(text: str) -> Name:
    head, colon, tail = text.partition(":")
    network, at, size = head.partition("@")
    if at and not size.isdecimal():
        raise ValueError(f"encoder must be NAME@SIZE with a number of pixels; got {text!r}")
    if network in TORCHVISION or network.startswith(TIMM):
        if colon and not tail:
            raise FileNotFoundError(f"{network}:PATH must name an existing file; got ''")
        return Name(network, int(size or 0), tail)
    if colon and not at and all(map(str.isidentifier, (*network.split("."), tail))):
        return Name(network, function=tail)
    raise ValueError(
        f"encoder must be one of {', '.join(TORCHVISION)}, or timm/NAME (see dcl encoders), or one "
        "of these with a local file, resnet50:PATH, or your own module:function, or several with "
        f"commas between them; got {text!r}"
    )


def check_name(names: str) -> list[Name]:
    """The parts of `names`, checked as far as that is no work: libraries, files, functions.

    Raises ValueError for an unknown name or one that needs timm where it is not installed,
    FileNotFoundError for a file that is not there.
    """
    found = parts(names)
    for one in found:
        if one.function:
            function(one)
            continue
        if one.network.startswith(TIMM):
            timm_settings(one.network)
        if one.file and not Path(one.file).expanduser().is_file():
            raise FileNotFoundError(
                f"{one.network}:PATH must name an existing file; got {one.file!r}"
            )
    return found


def kept(names: str) -> bool:
    """Whether the weights of all networks of `names` are on this machine. Raises as `parts`."""
    return all(one.function or one.file or cached(one.network) for one in parts(names))


def absolute(names: str) -> str:
    """The same names, to be found from any folder: files of weights with their whole paths."""
    return ",".join(
        str(one._replace(file=one.file and os.path.abspath(Path(one.file).expanduser())))
        for one in parts(names)
    )


def own_size(names: str) -> int:
    """The side of the images that the networks want to see; of several the largest."""
    return max(_side(one) for one in parts(names))


def _side(one: Name) -> int:
    return one.size or (224 if one.function else settings(one.network).size)


def sized(names: str, side: int) -> str:
    """The names with the size at which each network sees images of `side` pixels.

    Smaller images than 64 px are enlarged to the network's own size, as are all images for a
    network of fixed size; others see them as they are.
    """
    found = []
    for one in parts(names):
        free = not (one.size or one.function) and not settings(one.network).fixed
        size = 0 if one.function else side if free and side >= 64 else _side(one)
        found.append(str(one._replace(size=size)))
    return ",".join(found)


def function(one: Name) -> object:
    """Your function, imported; the current folder is searched, too. ValueError if it is absent."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(one.network), one.function)
    except Exception as error:  # whatever a foreign module raises
        raise ValueError(
            f"encoder {one} must name a function of a module that can be imported, from here "
            f"({here}) or with PYTHONPATH; {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if not callable(found):
        raise ValueError(f"encoder {one} must name a function; got {type(found).__name__}")
    return found


def own_module(one: Name) -> nn.Module:
    """What your function returns, which must be a torch module."""
    made = function(one)()  # type: ignore[operator]
    if not isinstance(made, nn.Module):
        raise TypeError(f"encoder {one} must return a torch.nn.Module; got {type(made).__name__}")
    return made
