import importlib.util
import sys

import pytest
import torch
from torch import nn

from dcl.data import load
from dcl.nets import libraries
from dcl.nets.libraries import Input, settings
from dcl.nets.names import Name, absolute, check_name, own_size, parts, sized
from dcl.nets.pretrained import SideBySide, architecture, pretrained, spec_of

timm = importlib.util.find_spec("timm")
needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed (the extra photos)")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's, in the current folder."""
    (tmp_path / "mynet.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def colours():\n    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())\n\n"
        "def wrong():\n    return 3\n\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    yield "mynet:colours"
    sys.modules.pop("mynet", None)


def test_names_in_parts():
    said = "resnet50@160:a/w.pth,timm/vit_tiny_patch16_224.x,my.net:build"
    assert parts(said) == [
        Name("resnet50", 160, "a/w.pth"),
        Name("timm/vit_tiny_patch16_224.x"),
        Name("my.net", function="build"),
    ]
    assert ",".join(map(str, parts(said))) == said and parts("") == []
    assert parts("resnet18:build") == [Name("resnet18", file="build")]  # torchvision's names win
    for bad in ("resnet51", "resnet50@big", "mynet:a.pth", "resnet50,", "a@3:f", "/w.pth"):
        with pytest.raises(ValueError, match="encoder must be"):
            parts(bad)
    with pytest.raises(FileNotFoundError, match="existing file; got ''"):
        parts("resnet18:")


def test_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("resnet18@64:w.pth,mynet:f") == f"resnet18@64:{tmp_path}/w.pth,mynet:f"


def test_the_size_is_the_networks_own_and_can_be_another():
    assert (own_size("resnet18"), own_size("resnet18@160"), own_size("mynet:f")) == (224, 160, 224)
    assert own_size("resnet18@64,resnet18@288") == 288
    assert sized("resnet18", 96) == "resnet18@96" and sized("resnet18", 32) == "resnet18@224"
    assert sized("vit_b_16", 96) == "vit_b_16@224"  # it takes no other
    assert sized("resnet18@128,mynet:f", 96) == "resnet18@128,mynet:f"


def test_settings_are_the_networks_own():
    assert settings("resnet18") == Input()
    assert settings("efficientnet_b0").interpolation == "bicubic"
    assert settings("vit_b_16").fixed


@needs_timm
def test_settings_of_timm():
    half = (0.5, 0.5, 0.5)
    assert settings("timm/tf_efficientnet_lite0") == Input(224, half, half, "bicubic", False)
    assert own_size("resnet18,timm/vit_small_patch14_dinov2") == 518
    assert sized("timm/vit_small_patch14_dinov2", 96).endswith("@518")
    with pytest.raises(ValueError, match="timm/resnet50.*; got 'timm/resnet5O'"):
        check_name("timm/resnet5O")
    with pytest.raises(ValueError, match="got 'timm/resnet50.nobody'"):
        check_name("timm/resnet50.nobody")
    with pytest.raises(ValueError, match=r"size must be one that timm/maxvit.* takes; got 230"):
        architecture("timm/maxvit_tiny_tf_224@230")


@needs_timm
def test_offline_it_says_which_file_and_how_to_bring_it(monkeypatch):
    def offline(*_):
        raise OSError("no network\nat all")

    monkeypatch.setattr(libraries.socket, "getaddrinfo", offline)
    monkeypatch.setattr(libraries.urllib.request, "getproxies", dict)
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("it goes on"))
    with pytest.raises(FileNotFoundError) as caught:
        pretrained("timm/tf_efficientnet_lite0")
    for words in (
        *("no network at all", "download https://", "tf_efficientnet_lite0.in1k"),
        *("model.safetensors", "timm/tf_efficientnet_lite0:PATH"),
    ):
        assert words in str(caught.value)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    lacking = lambda name: None if name == "timm" else find(name)  # noqa: E731
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lacking)
    with pytest.raises(
        ValueError, match=r"needs timm.*pip install 'deep-clustering-book\[photos\]'"
    ):
        check_name("timm/resnet50")


def test_your_own_function(own):
    images = load("shapes").subset(4).images
    net = pretrained(own, images=images)
    assert net.out_dim == 12 and spec_of(net) == own
    assert architecture(own, images=images).out_dim == 12
    for bad, words in (
        ("mynet:gone", "must name a function.*gone"),
        ("nonet:f", "ModuleNotFoundError: No module named 'nonet'"),
        ("mynet:number", "must name a function; got int"),
    ):
        with pytest.raises(ValueError, match=words):
            check_name(bad)
    with pytest.raises(TypeError, match=r"mynet:wrong must return a torch.nn.Module; got int"):
        pretrained("mynet:wrong")


def test_several_stand_side_by_side(own):
    images = load("shapes").subset(4).images
    net = SideBySide([architecture("resnet18", 64), pretrained(own, images=images)]).eval()
    x = images.float() / 255
    with torch.no_grad():
        z, each = net(x), [encoder(x) for encoder in net.encoders]
    assert net.widths == (512, 12) and net.out_dim == 524 == z.shape[1]
    assert all(torch.equal(a, b) for a, b in zip(z.split(net.widths, 1), each))
    assert spec_of(net) == f"resnet18@64,{own}"
    again = architecture(spec_of(net), images=images)
    assert again.widths == net.widths and repr(again) == repr(net)
    nameless = nn.Identity()
    nameless.out_dim = 3
    assert spec_of(SideBySide([net, nameless])) == "module"
