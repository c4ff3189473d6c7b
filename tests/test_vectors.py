"""Plain vectors (N,d): what is taken, what is refused, and the way through loop and file."""

import hashlib
import pickle
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from dcl.data import Data, load, splits
from dcl.methods import swav
from dcl.optim import TrainConfig
from dcl.train import Objective, batches, check_fit, extract, train
from dcl.vectors import vectors_of

X = torch.tensor([[0.5, -3.0], [1e6, 2.0], [0.0, 0.25]])


def data(x=X, labels=None):
    return Data(x, labels, None, "toy", "all")


# ---------------------------------------------------------------- what is taken


def test_data_holds_vectors_as_they_are():
    d = data(labels=torch.tensor([2, 0, 2]))
    assert d.images is X and len(d) == 3 and d.vectors and (d.channels, d.size) == (0, 0)
    by_hand = hashlib.sha256(b"(3, 2)" + X.numpy().astype("<f4").tobytes())
    assert data().checksum == by_hand.hexdigest()[:16]
    changed = X.clone()
    changed[2, 1] += 1e-6
    assert len({data(x).checksum for x in (X, changed, X.flip(0), X.view(2, 3))}) == 4
    assert data(X.T.contiguous().T).checksum == data().checksum  # same values, other memory
    part = d.subset(2, seed=0)
    rows = [X.tolist().index(row) for row in part.images.tolist()]
    assert rows == sorted(set(rows)) and part.labels.tolist() == [[2, 0, 2][k] for k in rows]
    assert not Data(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), None, None, "", "all").vectors


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X.double(), TypeError, r"must be a float32 tensor; got torch.float64 \(3, 2\)"),
        (X.long(), TypeError, "must be a float32 tensor; got torch.int64"),
        (X.byte(), TypeError, r"must be a float32 tensor; got torch.uint8 \(3, 2\)"),
        (X[0], ValueError, r"vectors must be \(N,d\), none 0; got \(2,\)"),
        (X[None], ValueError, r"vectors must be \(N,d\), none 0; got \(1, 3, 2\)"),
        (X[:0], ValueError, r"none 0; got \(0, 2\)"),
        (X[:, :0], ValueError, r"none 0; got \(3, 0\)"),
        (X.log(), ValueError, "NaN or infinity in 2 of 3 rows, the first is row 0"),
        (X / torch.tensor([1, 0.0]), ValueError, "NaN or infinity in 3 of 3 rows"),
        (-1 / X[1:], ValueError, "NaN or infinity in 1 of 2 rows, the first is row 1"),
        (X.numpy(), TypeError, "images must be a uint8 tensor; got float32"),
        (X[None, None], TypeError, "images must be a uint8 tensor; got torch.float32"),
    ],
)
def test_what_is_no_vector_is_named(x, error, message):
    with pytest.raises(error, match=message):
        data(x)


def test_floats_of_any_kind_become_float32():
    rows = X.tolist()
    for x in (rows, X.numpy(), X.double(), np.array(rows, ">f8"), np.asfortranarray(X.numpy())):
        found = vectors_of(x)
        assert found.dtype == torch.float32 and torch.equal(found, X)
    half = vectors_of(X[2:].half())
    assert half.dtype == torch.float32 and half.tolist() == X[2:].tolist()
    for x in (X.byte(), X.long().numpy(), [[1, 2]], np.array([["a"]]), X.bool(), 1j * X.numpy()):
        with pytest.raises(TypeError, match=r"X must be floats to be vectors .*divide by 255"):
            vectors_of(x)
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 1 rows"):
        data(vectors_of([[1e300, 0.0]]))  # too large for float32


# ---------------------------------------------------------------- from a file


def test_a_file_of_vectors(tmp_path):
    path = tmp_path / "my vectors.npy"
    np.save(path, X.double().numpy())
    d = load(str(path))
    assert torch.equal(d.images, X) and d.images.dtype == torch.float32
    assert (d.name, d.split, d.labels, d.files) == ("my vectors", "all", None, None)
    assert splits(str(path)) == ("all",)
    with pytest.raises(ValueError, match="split must be one of all; got 'test'"):
        load(str(path), "test")
    with pytest.raises(ValueError, match="size is for images"):
        load(str(path), size=32)


class Malicious:
    ran = False

    def __reduce__(self):
        return (setattr, (Malicious, "ran", True))


def test_what_is_no_file_of_vectors_is_named(tmp_path):
    path = tmp_path / "x.npy"
    with pytest.raises(FileNotFoundError, match=r"there must be a .npy file at .*x.npy'"):
        load(str(path))
    for content in (b"", b"1,2\n3,4\n", pickle.dumps(Malicious())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x.npy' must be a .npy file of floats \(N,d\)"):
            load(str(path))
    np.save(path, np.array([Malicious()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="must be a .npy file of floats"):
        load(str(path))
    assert not Malicious.ran
    whole = tmp_path / "whole.npy"
    np.save(whole, X.numpy())
    path.write_bytes(whole.read_bytes()[:-4])
    with pytest.raises(ValueError, match="must be a .npy file of floats"):
        load(str(path))
    with path.open("wb") as file:
        np.savez(file, a=X.numpy(), b=X.numpy())
    with pytest.raises(ValueError, match=r"must hold one array; it is an archive of \['a', 'b'\]"):
        load(str(path))
    np.save(path, X.byte().numpy())
    with pytest.raises(TypeError, match=r"x.npy' must be floats .* got uint8 \(3, 2\)"):
        load(str(path))
    np.save(path, X[0].numpy())
    with pytest.raises(ValueError, match=r"vectors must be \(N,d\), none 0; got \(2,\)"):
        load(str(path))


# ---------------------------------------------------------------- through the loop


class Centre(Objective):
    """Learns the mean row: small enough to follow by hand."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Identity()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x, i):
        assert torch.equal(x, X[i])
        return {"loss": (x - self.w).square().sum(1).mean()}


def test_the_loop_takes_vectors_as_they_are():
    for x, i in batches(X, torch.tensor([2, 0]), 1):
        assert x.dtype == torch.float32 and torch.equal(x, X[i])
    objective = Centre()
    train(objective, X, TrainConfig(epochs=1, batch_size=3, lr=0.25, momentum=0.0))
    assert torch.allclose(objective.w, X.mean(0) / 2)  # d/dw (x - w)^2 at 0 is -2x
    assert torch.equal(extract(objective.embed, X), X)
    assert torch.equal(extract(nn.Linear(2, 5).eval(), X, 2).isfinite().sum(0), torch.full((5,), 3))
    assert X[1, 0] == 1e6 and X[0, 1] == -3  # nor were they changed


@dataclass(frozen=True)
class Inner:
    takes_vectors: ClassVar[bool] = True
    train: TrainConfig = TrainConfig(batch_size=2)


@dataclass(frozen=True)
class Config:
    takes_vectors: ClassVar[bool] = True
    pretext: Inner = Inner()
    n_clusters: int = 2


@dataclass(frozen=True)
class Images:
    n_clusters: int = 2


def test_a_method_takes_vectors_when_its_config_says_so(tmp_path):
    check_fit(X, Config(), tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists()
    with pytest.raises(ValueError, match="test_vectors needs images"):
        check_fit(X, Images(), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match=r"^swav needs images \(N,C,H,W\); got vectors \(3, 2\)$"):
        swav.fit(X, swav.PROFILES["smoke"])
    with pytest.raises(ValueError, match="number of images, 3; got 4"):
        check_fit(X, Config(n_clusters=4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        check_fit(X.log(), Config())
    check_fit(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), Config())  # and images as well
