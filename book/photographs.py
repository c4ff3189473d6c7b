"""Make the features of the set `photographs`: python book/photographs.py FOLDER --encoder ENCODER

FOLDER holds the 10,000 test images of CIFAR-10 in a subfolder for each class (data/README.md), and
ENCODER names an EfficientNet-Lite0 as `dcl fit --encoder` does. Writes
dcl/data/photographs.safetensors, and prints what the reduction cost: how much variance and how many
of the 20 nearest neighbours are left and, with labels, which only report, what each space is worth.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from dcl.app import run
from dcl.cluster.kmeans import kmeans
from dcl.cluster.neighbors import agreement, mine
from dcl.data import Data, load
from dcl.data.download import data_root
from dcl.data.photographs import FILE, packed, photographs
from dcl.measure import metrics
from dcl.nets.features import features
from dcl.nets.pretrained import spec_of
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
    parser.add_argument("--encoder", required=True)
    asked = parser.parse_args(arguments)
    data = load(f"folder:{asked.folder}")
    network: Any = run.encoder_of(asked.encoder, data)[0]
    assert network and data.labels is not None
    network.reduced = False  # float32
    z = features(network, data.images, cache=data_root() / "features")
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
