"""The real download code against a server on this machine, with tiny sets of every layout."""

import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torchvision import datasets

from dcl.data import load

RNG = np.random.default_rng(0)


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; cuts the connection in the middle of those in `server.cut`."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.server.asked.append(self.path)
        self.answer(body=True)

    def answer(self, body):
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            cut = self.path in self.server.cut
            self.wfile.write(content[: len(content) // 2] if cut else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cut, server.asked = {}, set(), []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def idx(array):
    """An array in the format of the MNIST files."""
    header = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(server, monkeypatch):
    """Five training and three test images; what they are, by file name."""
    arrays = {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (5, 28, 28)),
        "train-labels-idx1-ubyte": np.array([3, 1, 4, 1, 5]),
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (3, 28, 28)),
        "t10k-labels-idx1-ubyte": np.array([9, 2, 6]),
    }
    files = {f"{name}.gz": gzip.compress(idx(array)) for name, array in arrays.items()}
    server.files.update({f"/{name}": content for name, content in files.items()})
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server.url}/"])
    monkeypatch.setattr(
        datasets.MNIST, "resources", [(name, md5(content)) for name, content in files.items()]
    )
    return arrays


def archive(folder, files):
    """A tar.gz of a folder with files in it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def serve(server, monkeypatch, dataset, files):
    """Serve an archive at the address where torchvision's class will look, with its checksums."""
    content = archive(dataset.base_folder, files)
    server.files[f"/{dataset.filename}"] = content
    monkeypatch.setattr(dataset, "url", f"{server.url}/{dataset.filename}")
    monkeypatch.setattr(dataset, "tgz_md5", md5(content))
    for which in ("train_list", "test_list"):
        sums = [[name, md5(files[name])] for name, _ in getattr(dataset, which)]
        monkeypatch.setattr(dataset, which, sums)


def left(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*"))


PLACED = ["MNIST", "MNIST/raw", *sorted(f"MNIST/raw/{part}" for part in (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"))]  # fmt: skip


def test_mnist_is_downloaded_once(server, mnist, tmp_path):
    root = tmp_path / "not" / "yet"
    train = load("mnist", root=root)
    assert train.images.shape == (5, 1, 28, 28) and train.split == "train"
    assert (train.images[:, 0].numpy() == mnist["train-images-idx3-ubyte"]).all()
    assert train.labels.tolist() == [3, 1, 4, 1, 5] and train.classes == list("0123456789")
    asked = server.asked[:]  # torchvision asks twice for each, for redirections and for the file
    assert {*asked} == {*server.files} and len(asked) == 8
    assert left(root) == PLACED  # no archive, no temporary folder
    both = load("mnist", "train+test", root=root)
    assert (both.images[5:, 0].numpy() == mnist["t10k-images-idx3-ubyte"]).all()
    assert both.labels.tolist() == [3, 1, 4, 1, 5, 9, 2, 6] and both.split == "train+test"
    assert load("mnist", "test", root=root).labels.tolist() == [9, 2, 6]
    assert server.asked == asked  # the second and third call asked for nothing
    assert socket.getdefaulttimeout() is None


def test_fashion_mnist_has_its_own_folder_and_classes(server, mnist, tmp_path, monkeypatch):
    for name in ("mirrors", "resources"):
        monkeypatch.setattr(datasets.FashionMNIST, name, getattr(datasets.MNIST, name))
    data = load("fashion-mnist", "test", root=tmp_path)
    assert data.labels.tolist() == [9, 2, 6] and data.classes[9] == "Ankle boot"
    assert left(tmp_path) == [name.replace("MNIST", "FashionMNIST") for name in PLACED]


@pytest.mark.parametrize("victim", ["/train-images-idx3-ubyte.gz", "/t10k-labels-idx1-ubyte.gz"])
@pytest.mark.parametrize(
    ("change", "message"), [("cut", "could not be downloaded"), ("altered", "corrupted")]
)
def test_a_failed_download_leaves_nothing(server, mnist, tmp_path, victim, change, message):
    whole = server.files[victim]
    if change == "cut":
        server.cut.add(victim)
    else:
        server.files[victim] = gzip.compress(gzip.decompress(whole)[:-1] + b"x")
    with pytest.raises(FileNotFoundError, match=message):
        load("mnist", root=tmp_path)
    assert left(tmp_path) == []
    server.cut.clear()
    server.files[victim] = whole
    assert load("mnist", root=tmp_path).labels.tolist() == [3, 1, 4, 1, 5]


def test_an_interrupt_from_the_keyboard_leaves_nothing(server, mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "torchvision.datasets.utils.extract_archive", Mock(side_effect=KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        load("mnist", root=tmp_path)
    assert server.asked and left(tmp_path) == [] and socket.getdefaulttimeout() is None


def test_the_next_mirror_is_tried(server, mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server.url}/gone/", f"{server.url}/"])
    assert load("mnist", root=tmp_path).labels.tolist() == [3, 1, 4, 1, 5]


def test_offline_says_what_to_do(mnist, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist", root=tmp_path)
    message = str(caught.value)
    for said in ("load('mnist', root='somewhere')", str(tmp_path / "MNIST/raw"), "DCL_DATA",
                 "root=", "refused"):  # fmt: skip
        assert said in message
    assert left(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="file/MNIST/raw and could not be downloaded"):
        load("mnist", root=tmp_path / "file")


def test_files_placed_by_hand_need_no_network(server, mnist, tmp_path, monkeypatch):
    for form in ("files", "archives"):  # unpacked, or as downloaded with a browser
        raw = tmp_path / form / "MNIST/raw"
        raw.mkdir(parents=True)
        for name, array in mnist.items():
            if form == "files":
                (raw / name).write_bytes(idx(array))
            else:
                (raw / f"{name}.gz").write_bytes(server.files[f"/{name}.gz"])
        monkeypatch.setenv("DCL_DATA", str(tmp_path / form))
        assert load("mnist").labels.tolist() == [3, 1, 4, 1, 5]
    assert server.asked == []
    assert {*PLACED} <= {*left(tmp_path / "archives")}


SCRIPT = """
import json, sys
from torchvision import datasets
mirror, resources, root = json.loads(sys.argv[1])
datasets.MNIST.mirrors, datasets.MNIST.resources = [mirror], resources
from dcl.data import load
print(load("mnist", root=root).checksum)
"""


def test_two_processes_at_once(server, mnist, tmp_path):
    what = json.dumps([f"{server.url}/", datasets.MNIST.resources, str(tmp_path / "root")])
    command = [sys.executable, "-c", SCRIPT, what]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=here)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    checksum = load("mnist", root=tmp_path / "root").checksum
    assert [out.decode().split() for out, _ in answers] == [[checksum]] * 2
    assert left(tmp_path / "root") == PLACED


@pytest.mark.parametrize("name", ["cifar10", "cifar100-20"])
def test_cifar(server, tmp_path, monkeypatch, name):
    dataset = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    coarse = [f"superclass {k}" for k in range(20)]
    files, pixels = {}, {}
    for k, (file, _) in enumerate([*dataset.train_list, *dataset.test_list]):
        pixels[file] = RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
        content = {
            "data": pixels[file].reshape(2, -1),
            "labels": [k, k + 1],
            "fine_labels": [90 + k, 10 + k],
            "coarse_labels": [k, 19 - k],
        }
        files[file] = pickle.dumps(content)
    names = {
        "label_names": [*"abcdefghij"],
        "fine_label_names": [*map(str, range(100))],
        "coarse_label_names": coarse,
    }
    meta = dataset.meta["filename"]
    files[meta] = pickle.dumps(names)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(files[meta])})
    serve(server, monkeypatch, dataset, files)

    data = load(name, "train+test", root=tmp_path)
    assert data.images.is_contiguous()
    assert (data.images.numpy() == np.concatenate(list(pixels.values()))).all()
    assert len(server.asked) == 2  # for redirections and for the file
    assert sorted(os.listdir(tmp_path)) == [dataset.base_folder]
    labels, classes = {
        "cifar10": ([0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6], [*"abcdefghij"]),
        "cifar100-20": ([0, 19, 1, 18], coarse),
    }[name]
    assert data.labels.tolist() == labels and data.classes == classes
    assert load(name, "test", root=tmp_path).labels.equal(data.labels[-2:])
    # a damaged file is noticed by its checksum and fetched anew
    file = tmp_path / dataset.base_folder / dataset.test_list[0][0]
    file.write_bytes(file.read_bytes()[:-7])
    assert load(name, root=tmp_path).images.equal(data.images[:-2])
    assert len(server.asked) == 4 and file.read_bytes() == files[file.name]


def test_stl10(server, tmp_path, monkeypatch):
    pixels = {
        part: RNG.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
        for part, n in (("train", 2), ("test", 3), ("unlabeled", 4))
    }
    # the files keep every channel column by column
    files = {f"{part}_X.bin": x.transpose(0, 1, 3, 2).tobytes() for part, x in pixels.items()}
    files["train_y.bin"], files["test_y.bin"] = bytes([10, 1]), bytes([2, 3, 4])
    files["class_names.txt"] = "\n".join("abcdefghij").encode()
    serve(server, monkeypatch, datasets.STL10, files)

    def same(data, *parts):
        return (data.images.numpy() == np.concatenate([pixels[part] for part in parts])).all()

    train = load("stl10", root=tmp_path)
    assert train.labels.tolist() == [9, 0] and train.classes == list("abcdefghij")
    assert same(train, "train")
    unlabeled = load("stl10", "unlabeled", root=tmp_path)
    assert unlabeled.labels is None and same(unlabeled, "unlabeled")
    more = load("stl10", "train+unlabeled", root=tmp_path)
    assert more.labels is None and same(more, "train", "unlabeled")
    both = load("stl10", "train+test", root=tmp_path, size=48)
    assert both.labels.tolist() == [9, 0, 1, 2, 3] and both.images.shape == (5, 3, 48, 48)
    assert torch.equal(load("stl10", "test", root=tmp_path).labels, both.labels[2:])
    assert len(server.asked) == 2  # once for redirections, once for the file
