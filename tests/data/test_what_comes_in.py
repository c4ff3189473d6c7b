"""What people bring, by kind: deep pixels, images left out, arrays, empty paths, huge images."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcl.app import run
from dcl.app.choose import choose
from dcl.app.cli import IMPOSSIBLE, OK, WARNING, main
from dcl.app.clusters import Clusters
from dcl.app.estimator import DeepClusterer
from dcl.app.source import Source
from dcl.data import load
from dcl.data.arrays import tensor_of

S = 16
RAMP = np.arange(S * S).reshape(S, S)  # 0..255


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    return path


def png16(path, pixels):
    """A PNG of 16 bits with colour or alpha, (H,W,C), which PIL cannot write."""
    import zlib

    def chunk(kind, content):
        crc = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + crc

    h, w, c = pixels.shape
    head = w.to_bytes(4, "big") + h.to_bytes(4, "big") + bytes([16, {2: 4, 3: 2, 4: 6}[c], 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


# ---------------------------------------------------------------- more than 8 bits


@pytest.mark.parametrize(
    ("ending", "pixels", "scale"),
    [
        ("png", (RAMP * 16 + 15).astype(np.uint16), (0, 4095)),  # 12 bits
        ("tif", RAMP.astype(np.int32), (0, 255)),
        ("tif", (RAMP / 255).astype(np.float32), (0, 1)),
        ("tif", RAMP.astype(np.float32), (0, 255)),
        ("tif", (RAMP - 100).astype(np.int32), (-100, 155)),
        ("png", (30000 + RAMP).astype(np.uint16), (30000, 30255)),  # a narrow band
        ("png", (RAMP // 32).astype(np.uint16), (0, 7)),
        ("png", np.dstack([RAMP * 16, np.full_like(RAMP, 65535)]), (0, 4095)),
        ("png", np.dstack([RAMP * 16, RAMP * 16 + 9, RAMP]), (0, 4095)),
        ("png", np.dstack([RAMP * 16, RAMP, RAMP * 8, np.full_like(RAMP, 65535)]), (0, 4095)),
    ],
)
def test_the_range_comes_from_the_pixels(tmp_path, ending, pixels, scale):
    top = tmp_path / "deep"
    top.mkdir()
    place = top / f"a.{ending}"
    png16(place, pixels) if pixels.ndim == 3 else save(place, pixels)
    save(top / "shallow.png", np.full((S, S), 77, np.uint8))
    data = load(f"folder:{top}")
    colour = pixels[..., : {2: 1, 4: 3}.get(pixels.shape[-1], 3)] if pixels.ndim == 3 else pixels
    black, white = scale
    wanted = np.rint((colour.astype(float) - black) * 255 / (white - black))
    wanted = np.broadcast_to(wanted if wanted.ndim == 3 else wanted[..., None], (S, S, 3))
    assert data.scale == scale
    assert data.images[0].permute(1, 2, 0).tolist() == wanted.tolist()
    assert (data.images[1] == 77).all()
    assert f"{black:g} becomes black and {white:g} white" in data.remarks()[0]
    streamed = [load(f"folder:{top}", root=tmp_path, cache_bytes=1) for _ in range(2)]
    for other in streamed:  # written, and found again
        assert torch.equal(other.images, data.images) and other.remarks() == data.remarks()
        assert other.scale == data.scale


def test_depths_that_pil_hides(tmp_path):
    """A PPM whose low bytes PIL drops, and a TIFF of signed bytes that it reads as unsigned."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    colour = np.dstack([RAMP * 16 + 15] * 3)
    (tmp_path / "a/a.ppm").write_bytes(b"P6 16 16 65535\n" + colour.astype(">u2").tobytes())
    data = load(f"folder:{tmp_path}/a")
    assert data.scale == (0, 4095) and data.images[0, 2].max() == 255
    signed = Image.fromarray((RAMP - 128).astype(np.int8).view(np.uint8))
    signed.save(tmp_path / "b/a.tif", tiffinfo={339: 2})
    data = load(f"folder:{tmp_path}/b")
    assert data.scale == (-128, 127) and data.images[0, 0].tolist() == RAMP.tolist()


def test_one_scale_for_the_folder_not_one_per_image(tmp_path):
    for k in range(5):
        save(tmp_path / f"{k}.png", np.full((S, S), 1000 * (k == 4) * 60 + 4000, np.uint16))
    data = load(f"folder:{tmp_path}")
    assert data.images[:, 0, 0, 0].tolist() == [round(4000 * 255 / 65535)] * 4 + [249]
    assert "a few bright images set this scale" in data.said


def test_what_has_no_scale_is_listed(tmp_path):
    save(tmp_path / "nan.tif", np.full((S, S), np.nan, np.float32))
    save(tmp_path / "unit.tif", np.full((S, S), 0.5, np.float32))
    save(tmp_path / "whole.png", np.full((S, S), 4095, np.uint16))
    save(tmp_path / "named.tif", np.full((S, S), 9, np.uint16)).rename(tmp_path / "named.jpg")
    data = load(f"folder:{tmp_path}")
    assert [file for file, _ in data.skipped] == ["nan.tif", "unit.tif"]
    assert "NaN" in data.skipped[0][1] and "no common scale" in data.skipped[1][1]


def test_new_images_are_read_with_the_scale_of_training(tmp_path, capfd):
    draw = np.random.default_rng(0)
    for k in range(20):
        save(tmp_path / f"a/{k}.png", draw.integers(0, 4096, (S, S)).astype(np.uint16))
    save(tmp_path / "b/new.png", np.full((S, S), 1023, np.uint16))
    out = tmp_path / "run"
    asked = ["--clusters", "2", "--recipe", "smoke", "--epochs", "1", "--size", "16"]
    code = main(["fit", "dac", "--data", str(tmp_path / "a"), "--out", str(out), *asked])
    err = capfd.readouterr().err
    assert code in (OK, WARNING), err
    assert "4095 white" in err and "4095 white" in (out / "report.html").read_text()
    assert run.clusters(out).scale == (0, 4095)
    assert main(["predict", str(out), str(tmp_path / "b")]) == OK
    assert "4095 white, as in training" in capfd.readouterr().err
    again = Source(str(tmp_path / "b")).load(scale=(0, 4095), tell=None)
    assert (again.images == 64).all()


# ---------------------------------------------------------------- left out


def test_every_split_can_be_read_and_what_is_left_out_is_told(tmp_path):
    for place in ("train/a", "train/b", "test/a", "val/a", "more/c"):
        for k in range(2):
            save(tmp_path / place / f"{k}.png", np.full((S, S), k, np.uint8))
    save(tmp_path / "loose.png", RAMP.astype(np.uint8))
    one = load(f"folder:{tmp_path}")
    assert one.split == "train" and len(one) == 4
    assert [file for file, _ in one.skipped] == ["loose.png", "more", "test", "val"]
    assert "2 images not in the split 'train'; the split 'all' has it" in one.skipped[-1][1]
    assert len(load(f"folder:{tmp_path}", "val")) == 2
    assert load(f"folder:{tmp_path}", "train+val").classes == ["a", "b"]
    whole = load(f"folder:{tmp_path}", "all")
    assert len(whole) == 11 and whole.skipped == []
    (tmp_path / "loose.png").unlink()
    assert load(f"folder:{tmp_path}", "all").classes == ["a", "b", "more"]
    assert len(load(f"folder:{tmp_path}/train/..")) == 4  # the same by another path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".hidden.png", "hidden"),
        ("a.cr2", "ending, .cr2, is none of an image's"),
        ("noending", "no ending"),
        ("more.zip", "an archive"),
        ("more.TAR", "an archive"),
    ],
)
def test_a_file_that_is_left_out_has_a_row(tmp_path, name, reason):
    save(tmp_path / "d/A.JPG", RAMP.astype(np.uint8))
    (tmp_path / "d" / name).write_bytes((tmp_path / "d/A.JPG").read_bytes())
    (tmp_path / "d" / "caption.txt").write_text("a text is no image")
    ((file, why),) = load(f"folder:{tmp_path}").skipped
    assert file == f"d/{name}" and reason in why


def test_folders_that_are_left_out_have_a_row(tmp_path):
    for place in ("seen/train/x", ".thumbs/deep", "__MACOSX", ".empty"):
        save(tmp_path / place / "1.PNG", RAMP.astype(np.uint8))
    (tmp_path / ".empty/1.PNG").unlink()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    data = load(f"folder:{tmp_path}")
    assert data.files == ["seen/train/x/1.PNG"]
    assert data.skipped == [
        (".thumbs", "a hidden folder with 1 image"),
        ("__MACOSX", "a hidden folder with 1 image"),
        ("gone", "broken link"),
    ]
    with pytest.warns(UserWarning, match="skipped .thumbs and 1 more: a hidden folder with 1"):
        Source(str(tmp_path)).load()


# ---------------------------------------------------------------- arrays

COLOUR = np.random.default_rng(0).integers(0, 256, (12, S, S, 3), dtype=np.uint8)
TRUTH = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)
GREY = COLOUR[..., 0]


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        (COLOUR, TRUTH),
        (COLOUR / 255, TRUTH),
        (TRUTH.contiguous(), TRUTH),
        (np.asfortranarray(COLOUR), TRUTH),
        (COLOUR.astype(">u2"), TRUTH),
        (COLOUR.astype(np.int64), TRUTH),
        ((COLOUR / 255).astype(">f8"), TRUTH),
        ((COLOUR / 255).astype(np.float16), TRUTH),
        (GREY, TRUTH[:, :1]),
        (GREY[..., None], TRUTH[:, :1]),
        (GREY > 99, (TRUTH[:, :1] > 99) * 255),
        (COLOUR[:, ::-1], TRUTH.flip(2)),
    ],
)
def test_one_rule_for_arrays_at_every_door(tmp_path, x, wanted):
    assert torch.equal(tensor_of(x), wanted) and tensor_of(x).dtype == torch.uint8
    seen = DeepClusterer()._data(x).images
    assert torch.equal(seen, wanted)
    np.save(tmp_path / "x.npy", x)
    assert torch.equal(Source(str(tmp_path / "x.npy")).load().images, wanted)
    assert load(str(tmp_path / "x.npy"), size=8).images.shape == (12, wanted.shape[1], 8, 8)


def test_a_file_of_images_goes_through(tmp_path, capfd):
    np.save(tmp_path / "images.npy", COLOUR)
    np.save(tmp_path / "wrong.npy", COLOUR.astype(int) + 99)
    asked = ["--clusters", "2", "--recipe", "smoke", "--epochs", "1", "--data"]
    out = str(tmp_path / "run")
    code = main(["fit", "dac", *asked, str(tmp_path / "images.npy"), "--out", out])
    assert code in (OK, WARNING), capfd.readouterr().err
    assert main(["predict", out, str(tmp_path / "images.npy")]) == OK
    assert len(capfd.readouterr().out.splitlines()[-12:]) == 12
    assert main(["predict", out, str(tmp_path / "wrong.npy")]) == IMPOSSIBLE
    assert "wrong.npy' of whole numbers must be in 0..255; got 99 to 354" in capfd.readouterr().err


# ---------------------------------------------------------------- empty paths


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (["fit", "dac", "--data", "", "--clusters", "2", "--out", "x"], "data"),
        (["fit", "dac", "--data=", "--out", "x"], "data"),
        (["fit", "dac", "--tensorboard", "--data", "digits", "--out", " "], "out"),
        (["predict", "", "digits"], "folder"),
        (["predict", "--device", "cpu", "scan-digits-quick-seed0", ""], "data"),
        (["predict", "scan-digits-quick-seed0", "digits", "--out="], "out"),
        (["choose-k", ""], "data"),
        (["report", ""], "folder"),
        (["resume", ""], "out"),
        (["evaluate", "x", "--labels", ""], "labels"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(args, name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", RAMP.astype(np.uint8))
    assert main(args) == IMPOSSIBLE
    assert f"dcl: {name} must name a folder" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: DeepClusterer().fit(""), "data"),
        (lambda: DeepClusterer(recipe="smoke", run_dir="").fit(COLOUR), "run_dir"),
        (lambda: load("folder:"), "folder:PATH"),
        (lambda: choose(""), "data"),
        (lambda: run.resume(""), "run_dir"),
        (lambda: run.clusters(""), "run_dir"),
        (lambda: Clusters.load(""), "path"),
    ],
)
def test_nor_in_python(call, name):
    with pytest.raises(ValueError, match=f"{name} must name a folder.*got ''"):
        call()


# ---------------------------------------------------------------- huge images


def test_huge_images(tmp_path, monkeypatch, recwarn):
    """With PIL's limit at 90 pixels: as 96 and 200 megapixels are to its own."""
    for name, side in (("fine", 9), ("warned", 11), ("refused", 16)):
        save(tmp_path / f"{name}.png", RAMP[:side, :side].astype(np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90)
    data = load(f"folder:{tmp_path}", size=8)
    assert data.files == ["fine.png", "warned.png"] and not recwarn.list
    reason = "256 pixels, perhaps a decompression bomb; DCL_MAX_PIXELS=256 lets it in"
    assert data.skipped == [("refused.png", reason)]
    for count, n in (("256", 3), ("255", 2), ("100", 1)):
        monkeypatch.setenv("DCL_MAX_PIXELS", count)
        assert len(load(f"folder:{tmp_path}", size=8)) == n
    monkeypatch.setenv("DCL_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="DCL_MAX_PIXELS must be a whole number.*'many'"):
        load(f"folder:{tmp_path}", size=8)
    assert Image.MAX_IMAGE_PIXELS == 90
