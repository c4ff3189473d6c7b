"""`dcl encoders [WORD]`: the pretrained networks that `--encoder` knows."""

import importlib.util

import torch
from tyro.conf import Positional

from dcl.nets.libraries import INSTALL, TIMM, TORCHVISION, build, settings

MOST = 40
"""So many networks are built, without memory for weights, to see how wide and how large they are:
a few seconds."""


def encoders(word: Positional[str] = "") -> int:
    """Pretrained networks for --encoder: name, width of the features, pixels a side, megabytes.

    Any of them may be followed by @SIZE, for images of another size, and by :FILE, for weights in a
    local file. Besides: module:function, a network of your own; and several names with commas
    between them, whose features stand side by side.

    Args:
        word: Only networks with this in their names, such as dinov2, clip or efficientnet.
    """
    shown = [name for name in TORCHVISION if word in name]
    listed = importlib.util.find_spec("timm") is not None
    if listed:
        import timm

        known = [TIMM + name for name in timm.list_models(pretrained=True)]
        said = f"{len(known):,} more of timm, by a word in their names: dcl encoders dinov2"
        found = [name for name in known if word in name]
        shown += found if word else []
    else:
        said = f"timm is not installed, with some 1,800 more: {INSTALL}"
    each = {name.partition(".")[0] for name in shown}  # what follows the point says which weights
    wide = max(map(len, shown), default=0)
    rows = {name: _measured(name) for name in each} if len(each) <= MOST else {}
    if shown:
        print(f"{'name':<{wide}}  features  pixels     MB")
    for name in shown:
        width, size = rows.get(name.partition(".")[0], ("", ""))
        print(f"{name:<{wide}}  {width:>8}  {settings(name).size:>6}  {size:>5}")
    if not shown:
        print(f"no name contains {word!r}")
    if not rows and shown:
        print(f"more than {MOST}: a longer word also shows how wide and how large they are")
    if not word or not listed:
        print(said)
    return 0


def _measured(name: str) -> tuple[str, str]:
    """Width of the features and megabytes of the weights, from a network without memory."""
    with torch.device("meta"):
        network, width = build(name, settings(name).size, None)
    size = sum(v.numel() * v.element_size() for v in network.state_dict().values())
    return f"{width}", f"{size / 1e6:.0f}"
