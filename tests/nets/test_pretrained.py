import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from dcl.methods import simclr
from dcl.nets import convnets
from dcl.nets.pretrained import PRETRAINED, architecture, as_encoder, pretrained
from dcl.train import seeded


@pytest.fixture(scope="module")
def resnet():
    """Torchvision's own resnet18, random, with its classifier, in eval mode."""
    from torchvision.models import resnet18

    with seeded(3):
        return resnet18().eval()


@pytest.fixture(scope="module")
def weights(resnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "r18.pth"
    torch.save(resnet.state_dict(), path)
    return path


def images(n=2, c=3, h=40, w=40):
    with seeded(0):
        return torch.rand(n, c, h, w)


def by_hand(resnet, x, size):
    """What torchvision's network gives before its classifier, in the plainest steps."""
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    seen = {}
    hook = resnet.fc.register_forward_pre_hook(lambda m, args: seen.update(z=args[0]))
    with torch.no_grad():
        resnet((x - mean) / std)
    hook.remove()
    return seen["z"]


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 28, 28), (3, 16, 50), (3, 80, 80)])
def test_it_is_torchvisions_network_without_its_classifier(resnet, weights, shape):
    net = pretrained(f"resnet18:{weights}", size=64)
    x = images(2, *shape)
    expected = by_hand(resnet, x.repeat(1, 3 // shape[0], 1, 1), 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    assert (net.out_dim, net.spec, net.training) == (512, "resnet18", False)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_images_are_resized_as_the_network_was_trained(name):
    """Against PIL, which rounds to whole numbers."""
    by = {"resnet18": Image.Resampling.BILINEAR, "efficientnet_b0": Image.Resampling.BICUBIC}
    x = F.interpolate(images(1, h=9, w=9), (48, 48), mode="bilinear")[0].mul(255).byte()
    small = Image.fromarray(x.permute(1, 2, 0).numpy()).resize((32, 32), by[name])
    net = architecture(name, 32)
    net.network = nn.Flatten()
    with torch.no_grad():
        y = net(x[None] / 255).view(3, 32, 32) * net.std + net.mean
    expected = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
    torch.testing.assert_close(y, expected, rtol=0, atol=1.5 / 255)


def test_many_images_at_once_are_each_their_own(weights):
    net = pretrained(f"resnet18:{weights}", size=32)
    x = images(70)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[64:], net(x[64:]), rtol=1e-4, atol=1e-5)
    assert torch.equal(net.eval()(x[:2].requires_grad_()).detach(), net(x[:2]).detach())


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder_q.", "network."])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_files_of_other_programs(resnet, tmp_path, prefix, ending):
    state = {prefix + key: value for key, value in resnet.state_dict().items()}
    state["module.encoder_k.conv1.weight"] = torch.zeros(64, 3, 7, 7)
    state["module.queue"] = torch.zeros(3)
    if prefix != "module.encoder_q.":
        state = {key: value for key, value in state.items() if key.startswith(prefix)}
        state = {k: v for k, v in state.items() if not k.startswith(("module.enc", "module.q"))}
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    net = pretrained(f"resnet18:{path}")
    assert torch.equal(net.network.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)
    assert torch.equal(net.network.bn1.running_var, resnet.bn1.running_var)


def test_old_files_without_counters_and_without_classifier(resnet, tmp_path):
    path = tmp_path / "w.pth"
    keep = {
        key: value
        for key, value in resnet.state_dict().items()
        if not key.endswith("num_batches_tracked") and not key.startswith("fc.")
    }
    torch.save(keep, path)
    net = pretrained(f"resnet18:{path}")
    assert torch.equal(net.network.conv1.weight, resnet.conv1.weight)


def test_by_name_from_the_cache_of_torch_hub(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(weights.read_bytes())
    x = images()
    with torch.no_grad():
        assert torch.equal(
            pretrained("resnet18", size=64)(x), pretrained(f"resnet18:{weights}", size=64)(x)
        )


def test_offline_it_says_which_file_and_where(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args):
        print("Downloading")
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError) as caught:
        pretrained("resnet50")
    place = tmp_path / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    for words in ("no network", str(place), "TORCH_HOME", "resnet50:PATH", "download https://"):
        assert words in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_damaged_download_is_not_kept(tmp_path, monkeypatch):
    # a served file whose sha256 does not begin as its name says
    served = tmp_path / "served" / "resnet18-f37072fd.pth"
    served.parent.mkdir()
    served.write_bytes(b"an error page")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    whole = torch.hub.download_url_to_file
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda url, *rest: whole(served.as_uri(), *rest)
    )
    with pytest.raises(FileNotFoundError, match="invalid hash value"):
        pretrained("resnet18")
    assert not list((tmp_path / "hub" / "checkpoints").iterdir())


def test_bad_names_and_files(resnet, weights, tmp_path):
    with pytest.raises(ValueError, match=r"one of resnet18, .*vit_b_16.*got 'resnet19'"):
        pretrained("resnet19")
    with pytest.raises(ValueError, match=r"resnet50:PATH, or .*; got"):
        pretrained(str(weights))
    with pytest.raises(FileNotFoundError, match="existing file; got '/nowhere/w.pth'"):
        pretrained("resnet18:/nowhere/w.pth")
    with pytest.raises(ValueError, match=r"size must be an integer of at least 32; got 8"):
        pretrained(f"resnet18:{weights}", size=8)
    with pytest.raises(ValueError, match="size must be 224 for vit_b_16"):
        architecture("vit_b_16", size=96)
    with pytest.raises(ValueError, match=r"weights of resnet50; \d+ missing: .*another shape"):
        pretrained(f"resnet50:{weights}")
    state = resnet.state_dict()
    bad = {
        "wide": ({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, r"\(64, 1, 7, 7\) instead"),
        "more": ({**state, "layer5.w": torch.zeros(1)}, "1 not of this network: layer5.w"),
        "nan": ({**state, "bn1.bias": torch.full((64,), torch.nan)}, "not finite: bn1.bias"),
        "list": ([1, 2], "must hold a state dict; got list"),
        "other": ({"a": torch.zeros(1)}, "missing"),
        "number": ({**state, "bn1.bias": 3}, "another shape: bn1.bias"),
    }
    for name, (content, words) in bad.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=words):
            pretrained(f"resnet18:{tmp_path / name}")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_truncated_file_is_named(weights, tmp_path, name):
    (tmp_path / name).write_bytes(weights.read_bytes()[:10_000])
    with pytest.raises(ValueError, match=name):
        pretrained(f"resnet18:{tmp_path / name}")


def test_a_malicious_pickle_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"conv1.weight": Evil()}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Evil()))
    for name in ("zip.pth", "raw.pth", "raw.safetensors"):
        with pytest.raises(ValueError, match=name):
            pretrained(f"resnet18:{tmp_path / name}")
    assert not (tmp_path / "harm").exists()
    pickle.loads((tmp_path / "raw.pth").read_bytes())  # pickle itself runs it
    assert (tmp_path / "harm").exists()


def test_bad_images(weights):
    net = pretrained(f"resnet18:{weights}")
    for x in (torch.zeros(1, 2, 32, 32), torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32).byte()):
        with pytest.raises(ValueError, match="images must be float"):
            net(x)
    with pytest.raises(ValueError, match="sides of at least 16 px"):
        net(torch.zeros(1, 3, 15, 32))


@pytest.mark.parametrize("name", [n for n in PRETRAINED if n not in ("resnet34", "convnext_tiny")])
def test_every_architecture_tells_its_width(name):
    size = 224 if name == "vit_b_16" else 64
    before = torch.get_rng_state()
    net = architecture(name, size)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        assert net(images(1)).shape == (1, net.out_dim)
    assert not any(m.out_features == 1000 for m in net.modules() if isinstance(m, nn.Linear))


def uint8(n=4, c=3, size=20):
    with seeded(1):
        return torch.randint(256, (n, c, size, size)).to(torch.uint8)


def test_any_module_is_an_encoder():
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert as_encoder(net, uint8()) is net and net.out_dim == 5
    assert net.training  # as it was
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    own = convnets.encoder("small_cnn", uint8())
    assert as_encoder(own, uint8()) is own


def test_a_module_with_an_inner_encoder_is_taken_whole():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.last = nn.Flatten(), nn.Linear(1200, 7)

        def forward(self, x):
            return self.last(self.encoder(x))

    found = as_encoder(Two(), uint8())
    assert not hasattr(found, "encoder") and found.out_dim == 7
    assert found(uint8().float()).shape == (4, 7)
    pretext = simclr.SimCLR(uint8(), simclr.Config())
    assert as_encoder(pretext, uint8()) is pretext  # mined in its embedding


def test_what_is_no_encoder():
    with pytest.raises(TypeError, match="torch.nn.Module; got int"):
        as_encoder(3, uint8())
    for net, words in (
        (nn.Identity(), r"for 3 images it returned \(3, 3, 20, 20\)"),
        (nn.Flatten(0), "must return a row per image; returned 3600"),
        (nn.Conv2d(1, 4, 3), r"it raised RuntimeError.*1 channels|it raised RuntimeError"),
    ):
        with pytest.raises(ValueError, match=r"images \(B,3,20,20\) to features \(B,D\).*" + words):
            as_encoder(net, uint8())
    bad = nn.Sequential(nn.Flatten(), nn.Linear(1200, 2))
    nn.init.constant_(bad[1].bias, torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        as_encoder(bad, uint8())
    wrong = nn.Flatten()
    wrong.out_dim = 8
    with pytest.raises(ValueError, match="its out_dim, 8; it returned D = 1200"):
        as_encoder(wrong, uint8())
