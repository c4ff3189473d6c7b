"""What a reader of the README tries first, and what went wrong then."""

import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import dcl
from dcl import methods
from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from dcl.app.clusters import Clusters
from dcl.app.estimator import DeepClusterer
from dcl.data import load
from dcl.data.arrays import with_channels
from dcl.recipes import recipe

DONE = (OK, WARNING)


@pytest.fixture(scope="module")
def fifteen(tmp_path_factory):
    """Fifteen photographs, of five sizes and three kinds."""
    folder, random = tmp_path_factory.mktemp("fifteen"), np.random.default_rng(0)
    for k in range(15):
        h, w = [(150, 200), (200, 150), (151, 198), (140, 220), (240, 320)][k % 5]
        noise = random.integers(0, 60, (h, w, 3)) + np.roll([190, 60, 20], k % 3)
        Image.fromarray(noise.astype(np.uint8)).save(
            folder / f"{k:02}.{['jpg', 'png', 'webp'][k % 3]}"
        )
    return folder


@pytest.fixture(scope="module")
def run(fifteen, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "dac"
    assert fit("dac", fifteen, out) in DONE
    return out


def fit(method, data, out, *more):
    asked = ["--data", str(data), "--out", str(out), "--clusters", "3", "--recipe", "smoke"]
    return main(["fit", method, *asked, *more])


@pytest.mark.parametrize("method", methods.methods())
def test_fifteen_photographs_go_through_everything(method, fifteen, tmp_path, capfd):
    out = tmp_path / "run"
    assert fit(method, fifteen, out, "--epochs", "1") in DONE
    said = capfd.readouterr()
    assert "15 images in" in said.out and "to fit 15 images: " in said.err
    assert "15 images are few for 3 clusters: expect little, and try --encoder" in said.err
    assert main(["predict", str(out), str(fifteen)]) == OK
    assert capfd.readouterr().out.count("\n") == 16
    assert main(["report", str(out)]) in DONE
    assert main(["choose-k", str(out), "--most", "4"]) in (OK, IMPOSSIBLE)  # all may collapse
    assert "Traceback" not in capfd.readouterr().err


def test_three_photographs_get_a_sentence(fifteen, tmp_path, capfd):
    three = tmp_path / "three"
    three.mkdir()
    for file in sorted(fifteen.iterdir())[:3]:
        (three / file.name).symlink_to(file)
    assert fit("dac", three, tmp_path / "run", "--epochs", "1") in DONE
    assert "3 images are few for 3 clusters" in capfd.readouterr().err
    assert main(["choose-k", str(three)]) == IMPOSSIBLE
    assert capfd.readouterr().err == "dcl: data must have at least 6 images; got 3\n"


def test_choose_k_says_what_it_lowered_and_names_the_data(fifteen, tmp_path, capfd):
    assert main(["choose-k", str(fifteen), "--most", "3"]) == OK
    assert "dcl: to fit 15 images: train.batch_size 15 (not " in capfd.readouterr().err
    for k in range(8):
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{k}.png")
    assert main(["choose-k", str(tmp_path), "--encoder", "pixels"]) == IMPOSSIBLE
    assert "data must have features that can be clustered" in capfd.readouterr().err


def test_a_run_that_is_complete_says_so(run, fifteen, capfd):
    capfd.readouterr()
    for again in (lambda: fit("dac", fifteen, run), lambda: main(["resume", str(run)])):
        assert again() in DONE
        assert "all epochs were done before" in capfd.readouterr().err


def test_photographs_and_output_are_kept_apart(fifteen, capfd):
    before = sorted(fifteen.iterdir())
    for name in (fifteen, f"folder:{fifteen}", fifteen / "." / ""):
        assert fit("dac", name, fifteen) == IMPOSSIBLE
        assert "out must be another folder than the images'" in capfd.readouterr().err
    with pytest.raises(ValueError, match="run_dir must be another folder"):
        DeepClusterer("dac", 3, recipe="smoke", run_dir=fifteen).fit(fifteen)
    assert sorted(fifteen.iterdir()) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "-1"], "seed must be at least 0; got -1"),
        (["--device", "gpu"], "device must be auto, cpu or an available GPU; got 'gpu'"),
        (["--encoder", "resnet9"], "encoder must be one of resnet18"),
        (["--encoder", "resnet50:gone.pth"], "resnet50:PATH must name an existing file"),
        (["--size", "-3"], "size must be at least 8; got -3"),
    ],
)
def test_settings_are_refused_before_images_are_read(more, message, tmp_path, capfd):
    assert fit("dac", tmp_path / "unread", tmp_path / "x", *more) == IMPOSSIBLE
    assert message in capfd.readouterr().err
    if more[0] != "--seed":
        main(["choose-k", str(tmp_path / "unread"), *more])
        assert message in capfd.readouterr().err


def test_messages_speak_of_what_was_typed(run, fifteen, tmp_path, capfd):
    end, start = os.pipe()
    pipe = f"/dev/fd/{start}"  # as /dev/stdout is, before `| head`
    for args, message in (
        (["predict", str(tmp_path / "gone"), "x"], "there is no such folder\n"),
        (["predict", str(tmp_path), "x"], "there is no model.safetensors\n"),  # no dcl resume
        (["predict", str(run), str(fifteen / "00.jpg")], "which is a file: give the folder"),
        (["predict", str(run), str(tmp_path)], f"{str(tmp_path)!r} must hold images"),
        (
            ["predict", str(run), "x", "--out", pipe],
            f"out must be the path of a file; got {pipe!r}",
        ),
        (["evaluate", str(run), "--labels", "folders"], "the run's images lie in no subfolders"),
    ):
        assert main(args) == IMPOSSIBLE
        err = capfd.readouterr().err
        assert message in err and err.count("\n") == 1
    os.close(start)
    os.close(end)
    assert main(["--version"]) == OK and dcl.__version__ in capfd.readouterr().out


def test_a_warning_is_one_line(monkeypatch, capfd):
    def command() -> int:
        warnings.warn("two\nlines", stacklevel=1)
        return OK

    monkeypatch.setattr("dcl.app.cli.COMMANDS", {"list": command})
    assert main(["list"]) == OK
    assert capfd.readouterr().err == "warning: two lines\n"


def test_ctrl_c_is_quiet_from_the_start():
    code = "import signal, sys, os; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "class Find:\n def find_spec(self, name, *_):\n"
    code += "  if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"  # PyTorch takes seconds
    code += "sys.meta_path.insert(0, Find())\n"
    code += "from dcl.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, b"")


# ---------------------------------------------------------------- from Python


def test_grey_and_colour_are_read_as_in_training(run, capfd):
    clusters = Clusters.load(run)  # a run folder
    grey = load("digits", size=32).images[:20]
    colour = grey.expand(-1, 3, -1, -1).contiguous()
    assert torch.equal(clusters.assign(grey).probabilities, clusters.assign(colour).probabilities)
    shipped = Clusters.load("scan-digits-quick-seed0")
    digits = load("digits").images[:20]
    found = shipped.assign(digits.expand(-1, 3, -1, -1)).clusters
    assert torch.equal(found, shipped.assign(digits).clusters)


def test_grey_is_what_pil_makes_of_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 3, 4, 5), np.uint8)
    expected = [np.asarray(Image.fromarray(x.transpose(1, 2, 0)).convert("L")) for x in pixels]
    assert np.array_equal(with_channels(torch.from_numpy(pixels), 1)[:, 0], np.stack(expected))


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: load(None), TypeError, "name must be a text"),
        (lambda: recipe("kmeans", "smoke"), ValueError, "method must be one of .*got 'kmeans'"),
        (lambda: fitted([[0.1, 0.2], [0.3]]), ValueError, "X must be one array; its items differ"),
        (
            lambda: fitted(["a.png", "b.png"]),
            TypeError,
            "X must hold numbers.*path of their folder",
        ),
        (lambda: fitted(np.zeros((0, 32, 32, 3))), ValueError, "X must hold at least one image"),
    ],
)
def test_what_is_no_data_is_named(action, error, message):
    with pytest.raises(error, match=message):
        action()


def fitted(X):
    return DeepClusterer("dac", 3, recipe="smoke").fit(X)
