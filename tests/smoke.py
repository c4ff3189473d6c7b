"""The methods as the tests find them: the smoke recipe, and an encoder that each accepts."""

import copy
import importlib
from dataclasses import fields, replace

import torch
from torch import nn

from dcl.recipes import recipe
from dcl.views import View


def module(stem):
    return importlib.import_module(f"dcl.methods.{stem}")


def still(config):
    """A configuration whose views change nothing but the size."""
    kept = {}
    for name, value in ((f.name, getattr(config, f.name)) for f in fields(config)):
        if isinstance(value, View):
            kept[name] = View(size=value.size)
        elif isinstance(value, tuple) and value and isinstance(value[0], View):
            kept[name] = tuple(View(size=view.size) for view in value)
    return replace(config, **kept)


def smooth():
    """A network without corners: behind a ReLU or a maximum, rounding grows from step to step."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, 3), nn.BatchNorm2d(8), nn.Tanh(),
        nn.Conv2d(8, 12, 2), nn.BatchNorm2d(12), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    net.out_dim = 12
    return net


def accepted(stem, images, net):
    """`net`, or the method's pretext around it where a network alone is refused."""
    config = recipe(stem, "smoke")
    try:
        module(stem).model(images, config, copy.deepcopy(net))
    except ValueError:
        pretext = importlib.import_module(type(config.pretext).__module__)
        return pretext.model(images, config.pretext, net)
    return net


def same(a, b):
    """Two state dicts are equal to the bit (extra state may be any plain value)."""
    equal = [torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a]
    return a.keys() == b.keys() and all(equal)
