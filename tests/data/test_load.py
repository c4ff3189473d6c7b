"""`Data` and `load`: values against hand calculations, checksums, splits, bad input."""

import hashlib
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dcl.data import SPLITS, Data, load, splits
from dcl.data.load import data_root
from dcl.data.photographs import packed
from dcl.train import seeded

X = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2)
Y = torch.tensor([1, 0])


def data(images=X, labels=Y, classes=("a", "b")):
    return Data(images, labels, None if classes is None else list(classes), "toy", "all")


def digits_by_pil(image):
    large = Image.fromarray(image.astype(np.float32)).resize((16, 16), Image.Resampling.BILINEAR)
    return np.floor(np.asarray(large) * 255 / 16 + 0.5)


def test_digits_enlarged_by_hand_and_by_pil():
    digits = load("digits")
    assert digits.images.shape == (1797, 1, 16, 16) and digits.split == "all"
    assert digits.classes == list("0123456789") and digits.labels[:5].tolist() == [0, 1, 2, 3, 4]
    # the first digit's first line is 0 0 5 13 9 1 0 0; between neighbours a and b lie
    # (3a + b) / 4 and (a + 3b) / 4, and 16 becomes 255
    line = [0, 0, 0, 5 / 4, 15 / 4, 7, 11, 12, 10, 7, 3, 3 / 4, 1 / 4, 0, 0, 0]
    assert digits.images[0, 0, 0].tolist() == [int(v * 255 / 16 + 0.5) for v in line]
    wide = digits_by_pil(load_digits().images[1234])
    assert digits.images[1234, 0].tolist() == wide.tolist()
    assert digits.checksum == "adb283c7086e8622"  # as data/README.md states


def test_shapes_by_name():
    data = load("shapes", "all")
    assert data.images.shape == (1980, 3, 24, 24) and data.size == 24 and data.channels == 3
    assert data.classes == ["disc", "square", "triangle", "cross", "ring", "bar"]
    assert data.labels.bincount().tolist() == [330] * 6
    assert data.checksum == "2c8f3cec1129e420"  # as data/README.md states


def test_checksum_is_that_of_shape_images_and_labels():
    by_hand = hashlib.sha256(b"(2, 3, 2, 2)" + bytes(range(24)))
    assert data(labels=None).checksum == by_hand.hexdigest()[:16]
    by_hand.update(bytes([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
    assert data().checksum == by_hand.hexdigest()[:16]
    turned = X.transpose(2, 3).contiguous().transpose(2, 3)  # same values, other memory
    assert data(turned).checksum == data().checksum
    changed = X.clone()
    changed[1, 2, 1, 1] += 1
    others = [data(changed), data(labels=Y.flip(0)), data(X.view(2, 3, 1, 4)), data(labels=None)]
    assert len({data().checksum, *(other.checksum for other in others)}) == 5


def test_subset_is_random_sorted_seeded_and_blind_to_labels():
    x = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    whole = data(x, torch.arange(100), classes=None)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    part = whole.subset(30, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    rows = part.labels.tolist()
    assert rows == sorted(set(rows)) and len(part) == 30 and rows != list(range(30))
    assert part.images.flatten().tolist() == rows  # image and label stay together
    assert whole.subset(30, seed=1).labels.tolist() == rows
    assert whole.subset(30, seed=2).labels.tolist() != rows
    unlabelled = data(x, None, classes=None).subset(30, seed=1)
    assert unlabelled.images.flatten().tolist() == rows and unlabelled.labels is None
    assert whole.subset(100).checksum == whole.checksum
    assert (part.name, part.split) == ("toy", "all")
    for n in (0, 101):
        with pytest.raises(ValueError, match=f"n must be between 1 and .* 100; got {n}"):
            whole.subset(n)


def test_data_is_frozen_and_has_a_length():
    assert len(data()) == 2 and data().size == 2 and data().channels == 3
    assert data(X.view(2, 3, 1, 4)).size == 1
    with pytest.raises(FrozenInstanceError):
        data().name = "other"


def test_files_follow_the_rows():
    named = Data(X, Y, ["a", "b"], "toy", "all", ["x/1.png", "y/2.png"], [("z", "empty file")])
    part = named.subset(1, seed=0)
    k = part.images[0, 0, 0, 0].item() // 12
    assert part.files == [named.files[k]] and part.labels.tolist() == [Y[k]]
    moved = named.to("cpu")
    assert torch.equal(moved.images, X) and torch.equal(moved.labels, Y)
    assert part.skipped == moved.skipped == [("z", "empty file")]
    assert moved.files == named.files and named.checksum == data().checksum
    assert named.subset(2).images.data_ptr() == X.data_ptr()  # the whole is not copied
    assert data().subset(1).files is None
    with pytest.raises(ValueError, match="files must be 2, one per image; got 1"):
        Data(X, Y, None, "toy", "all", ["x/1.png"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": X.float()}, TypeError, "images must be a uint8 tensor; got torch.float32"),
        ({"images": X.numpy()}, TypeError, "images must be a uint8 tensor; got uint8"),
        ({"images": X[0]}, ValueError, r"images must be \(N,C,H,W\).*got \(3, 2, 2\)"),
        ({"images": X[:, :2]}, ValueError, r"C 1 or 3.*got \(2, 2, 2, 2\)"),
        ({"images": X[:0]}, ValueError, r"images must be .* got \(0, 3, 2, 2\)"),
        ({"labels": Y.int()}, TypeError, "labels must be an int64 tensor; got torch.int32"),
        ({"labels": Y[:1]}, ValueError, r"labels must be \(2,\).*got \(1,\)"),
        ({"labels": Y - 1}, ValueError, "labels must be from 0 to 1; got -1 to 0"),
        ({"labels": Y + 1}, ValueError, "labels must be from 0 to 1; got 1 to 2"),
    ],
)
def test_data_refuses(change, error, message):
    with pytest.raises(error, match=message):
        data(**change)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "digit",
            None,
            "name must be one of digits, shapes, photographs, .*got 'digit'",
        ),
        ("digit:all", None, "name must be one of .*; got 'digit'"),
        ("digits", "train", "split must be all; got 'train'"),
        ("digits:train", None, "split must be all; got 'train'"),
        ("mnist:train", "test", "split must be train; got 'test'"),
        ("mnist", "unlabeled", r"train, test, train\+test; got 'unlabeled'"),
        ("stl10", "val", r"unlabeled, train\+unlabeled; got 'val'"),
    ],
)
def test_load_names_what_exists(name, split, message):
    with pytest.raises(ValueError, match=message):
        load(name, split, root="nowhere")


def test_defaults_and_size():
    for size in (0, 2.5):
        with pytest.raises(ValueError, match="size must be an integer of at least 1"):
            load("digits", size=size)
    assert load("digits", "").split == "all"  # empty, as a notebook's parameter: the default
    named = load("digits:all")
    assert (named.name, named.split) == ("digits", "all")
    assert [splits[0] for splits in SPLITS.values()] == ["all"] * 3 + ["train"] * 6


def test_size_averages_what_it_merges():
    digits, half = load("digits").subset(20), load("digits", size=8).subset(20)
    assert half.images.shape == (20, 1, 8, 8) and half.labels.equal(digits.labels)
    # an antialiased bilinear halving weighs four neighbours 1 3 3 1 in each direction
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for i, j in ((1, 1), (3, 4), (6, 2)):
        square = digits.images[:, 0, 2 * i - 1 : 2 * i + 3, 2 * j - 1 : 2 * j + 3].float()
        expected = torch.einsum("nij,i,j->n", square, weights, weights)
        assert (half.images[:, 0, i, j] - expected).abs().max() <= 0.51
    large = load("shapes", size=32)
    assert large.images.shape == (1980, 3, 32, 32)
    assert large.images.float().mean() == pytest.approx(load("shapes").images.float().mean(), abs=1)


def test_data_root_order(monkeypatch):
    monkeypatch.setenv("DCL_DATA", "~/elsewhere")
    assert data_root("here") == Path("here")
    assert data_root() == Path.home() / "elsewhere"
    monkeypatch.delenv("DCL_DATA")
    assert data_root() == Path(__file__).resolve().parents[2] / "data"
    monkeypatch.setattr("dcl.data.download.__file__", "/nowhere/dcl/data/download.py")
    assert data_root() == Path.home() / ".cache" / "dcl"


def test_import_loads_no_heavy_library():
    code = (
        "import sys, dcl.data; dcl.data.load('shapes');"
        "print([m for m in ('torchvision', 'sklearn', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


REAL = Path(os.environ.get("DCL_DATA", ""))


@pytest.mark.skipif(not (REAL / "MNIST/raw").is_dir(), reason="no MNIST in $DCL_DATA")
def test_real_mnist():
    train, test = load("mnist"), load("mnist", "test")
    assert train.images.shape == (60000, 1, 28, 28) and len(test) == 10000
    assert train.images.double().mean() == pytest.approx(33.318, abs=5e-4)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert train.checksum == "71d3be42f93ad20d"


def test_a_name_tells_its_splits(tmp_path):
    assert splits("mnist") == ("train", "test", "train+test") and splits("digits") == ("all",)
    assert splits("mnist:train+test") == ("train+test",)
    assert splits(f"folder:{tmp_path}") == ("all",)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
    assert splits(f"folder:{tmp_path}") == ("train", "test", "train+test", "all")
    with pytest.raises(ValueError, match="split must be one of train, test, .*; got 'half'"):
        splits("mnist:half")


def test_photographs_are_vectors_by_name():
    found = load("photographs")
    assert found.images.shape == (10_000, 96) and found.images.dtype == torch.float32
    assert found.vectors and found.labels.bincount().tolist() == [1000] * 10
    assert found.classes[3] == "cat" and found.split == "all"
    assert found.checksum == "64ab3226703e6992"  # as data/README.md states
    spread = found.images.std(0)
    assert spread.max() < 2 * spread.min()  # no column is much wider than another
    with pytest.raises(ValueError, match="size is for images; photographs holds vectors"):
        load("photographs", size=32)
    with pytest.raises(ValueError, match="split must be all; got 'test'"):
        load("photographs:test")


def test_components_keep_distances_by_hand():
    with seeded(0):
        x = (
            torch.randn(40, 3)
            * torch.tensor([5.0, 2.0, 0.01])
            @ torch.linalg.qr(torch.randn(3, 3))[0]
        )
    components, step = packed(x + 7, 2)
    assert components.dtype == torch.int8 and components.abs().amax(0).tolist() == [127, 127]
    z = components * step
    assert (torch.cdist(z, z) - torch.cdist(x, x)).abs().max() < 0.2
    axes = torch.linalg.svd(x - x.mean(0)).Vh[:2]
    assert (torch.cdist(z, z) - torch.cdist(x @ axes.T, x @ axes.T)).abs().max() < 0.15
    assert z.mean(0).abs().max() < 0.1
