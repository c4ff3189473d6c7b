"""Features of a folder of photographs by a pretrained network, against the loop that is usual.

Both start from JPEG files and end with the same features in float32. The usual loop decodes one
image after the other in the main process and passes it on alone, contiguous. The networks have
random weights: how fast they are does not depend on them.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import WALL, Claim, Outcome, peer, ratio, rows, threads, wall_times
from dcl.data import load
from dcl.nets.features import features
from dcl.nets.pretrained import Pretrained, architecture

PHOTOGRAPHS, SIZE, THREADS = 64, 224, 2
NETWORKS = ("resnet18", "efficientnet_b0", "timm/tf_efficientnet_lite0")


def photographs(folder: Path, n: int = PHOTOGRAPHS) -> list[Path]:
    """Write n JPEGs of 400 x 300: cuts of the two photographs that come with scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    whole, paths = load_sample_images().images, []
    random = np.random.default_rng(0)
    for k in range(n):
        top, left = random.integers(0, (128, 241))
        paths.append(folder / f"{k:03d}.jpg")
        Image.fromarray(whole[k % 2][top : top + 300, left : left + 400]).save(paths[-1])
    return paths


@torch.no_grad()
def one_by_one(paths: list[Path], net: Pretrained) -> Tensor:
    """The usual loop."""
    from PIL import Image, ImageOps

    found = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        found.append(net.network(((x - net.mean) / net.std).contiguous()))
    return torch.cat(found)


def extracted(folder: Path, net: Pretrained) -> Tensor:
    """What `dcl choose-k` and `dcl fit` do; nothing is kept from the round before."""
    with tempfile.TemporaryDirectory() as kept:
        before = os.environ.get("DCL_DATA")
        os.environ["DCL_DATA"] = kept
        try:
            return features(net, load(f"folder:{folder}", size=SIZE).images)
        finally:
            os.environ.pop("DCL_DATA")
            if before is not None:
                os.environ["DCL_DATA"] = before


def run(rounds: int) -> Outcome:
    remarks: list[str] = []
    found, claims = [], []
    names = NETWORKS if peer("timm", remarks) else NETWORKS[:2]
    with tempfile.TemporaryDirectory() as place, threads(THREADS):
        folder = Path(place)
        paths = photographs(folder)
        for name in names:
            net, plain = architecture(name), architecture(name)
            plain.load_state_dict(net.state_dict())
            plain.network.to(memory_format=torch.contiguous_format)
            work = {
                "dcl": lambda n=net: extracted(folder, n),
                "one by one": lambda n=plain: one_by_one(paths, n),
            }
            a, b = (candidate() for candidate in work.values())
            wall, cpu = wall_times(work, rounds)
            found += rows(wall, name, cpu)
            claims.append(
                ratio("one by one / dcl", wall["one by one"], wall["dcl"], at_least=1.5, group=name)
            )
            apart = float((a - b).abs().max() / b.abs().max())
            claims.append(Claim("largest difference", apart, at_most=1e-4, group=name))
    settings = {"photographs": PHOTOGRAPHS, "size": SIZE, "threads": THREADS}
    return Outcome(found, claims, settings, remarks, f"{WALL}, {PHOTOGRAPHS} photographs")
