"""Image folders: every kind of pixel, sizes, classes, order, splits, links, names, bad files."""

import os
import re
import socket
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, JpegImagePlugin

from dcl.data import load


def picture(value, h=2, w=2):
    """A PIL image of one value, whose type says the mode."""
    return Image.fromarray(np.full((h, w, *np.shape(value)), value, np.uint8))


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def test_photographs_stand_upright(tmp_path):
    ramp = Image.fromarray(np.array([[[0] * 3, [90] * 3, [180] * 3]], np.uint8))  # 3 wide, 1 high
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    write(tmp_path / "a.png", ramp, exif=exif)
    images = load(f"folder:{tmp_path}").images
    assert images[0].tolist() == [[[0], [90], [180]]] * 3


def test_classes_come_from_folders_and_order_from_paths(tmp_path):
    for value, path in enumerate(["b/2.png", "b/10.png", "a/deep/z.png", "a/x.png", "B/k.png"]):
        write(tmp_path / path, picture(value))
    (tmp_path / "a/notes.txt").write_text("not an image")
    write(tmp_path / "a/.hidden.png", picture(99))
    write(tmp_path / ".checkpoints/a.png", picture(99))
    (tmp_path / "empty").mkdir()
    data = load(f"folder:{tmp_path}")
    assert data.images[:, 0, 0, 0].tolist() == [4, 2, 3, 1, 0]
    assert data.classes == ["B", "a", "b"]
    assert data.labels.tolist() == [0, 1, 1, 2, 2] and data.labels.dtype == torch.int64
    assert (data.name, data.split) == (tmp_path.name, "all")
    assert load(f"folder:{tmp_path}/").checksum == data.checksum


def test_without_class_folders_there_are_no_labels(tmp_path):
    write(tmp_path / "b.png", picture(1))
    write(tmp_path / "a.jpg", picture(2))
    data = load(f"folder:{tmp_path}")
    assert data.labels is None and data.classes is None
    assert data.images[:, 0, 0, 0].tolist() == [2, 1]
    write(tmp_path / "c/c.png", picture(3))  # some loose, some not: folders are not classes
    assert load(f"folder:{tmp_path}").labels is None


def test_splits_and_files_follow_the_rows(tmp_path):
    for k, path in enumerate(["train/b/1.png", "train/c/x/1.png", "test/a/1.png", "test/c/1.png"]):
        write(tmp_path / path, picture(k))
    (tmp_path / "test/a/0.png").write_bytes(b"")
    train, test = load(f"folder:{tmp_path}"), load(f"folder:{tmp_path}", "test")
    assert train.split == "train" and train.images[:, 0, 0, 0].tolist() == [0, 1]
    assert train.skipped == [
        ("test", "a folder with 3 images not in the split 'train'; the split 'all' has it")
    ]
    assert test.split == "test" and test.images[:, 0, 0, 0].tolist() == [2, 3]
    both = load(f"folder:{tmp_path}", "train+test")
    assert both.files == ["train/b/1.png", "train/c/x/1.png", "test/a/1.png", "test/c/1.png"]
    assert both.skipped == [("test/a/0.png", "empty file")]
    assert both.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert both.classes == ["a", "b", "c"] and both.labels.tolist() == [1, 2, 0, 2]
    whole = load(f"folder:{tmp_path}", "all")
    assert whole.classes == both.classes and sorted(whole.files) == sorted(both.files)
    with pytest.raises(ValueError, match=r"split must be one of train, test, train\+test, all"):
        load(f"folder:{tmp_path}", "val")
    with pytest.raises(ValueError, match="split must be all; got 'train'"):
        load(f"folder:{tmp_path}/train", "train")


def test_mixed_sizes_need_size_and_are_cut_in_the_middle(tmp_path):
    wide = np.arange(4 * 8, dtype=np.uint8).reshape(4, 8)
    write(tmp_path / "a.png", Image.fromarray(wide))
    write(tmp_path / "b.png", picture(77, 12, 8))
    with pytest.raises(ValueError, match=r"size must be given.*a.png is 8x4, b.png is 8x12"):
        load(f"folder:{tmp_path}")
    data = load(f"folder:{tmp_path}", size=4)
    assert data.images.shape == (2, 3, 4, 4)
    assert data.images[0, 1].tolist() == wide[:, 2:6].tolist()  # scale 1: the middle as it is
    assert (data.images[1] == 77).all()
    # the same as to halve the whole, 1 3 3 1 of 8 across, 3 3 1 of 7 at the upper and lower edge,
    # and then to cut; PIL rounds after each direction
    small = load(f"folder:{tmp_path}", size=2).images[0, 0].double()
    down = torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7.0
    across = torch.tensor([[0, 1, 3, 3, 1, 0, 0, 0], [0, 0, 0, 1, 3, 3, 1, 0]]) / 8.0
    expected = down @ torch.tensor(wide).float() @ across.T
    assert (small - expected).abs().max() <= 1


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be an existing folder"):
        load(f"folder:{tmp_path}/absent")
    with pytest.raises(ValueError, match="must hold images.*found none below it"):
        load(f"folder:{tmp_path}")
    for content, reason in ((b"no image at all", "not an image"), (b"", "empty file")):
        (tmp_path / "a.png").write_bytes(content)
        for size in (None, 8):
            with pytest.raises(ValueError, match=f"none of its 1 file can .a.png: {reason}"):
                load(f"folder:{tmp_path}", size=size)
    write(tmp_path / "b/1.png", picture(1))
    data = load(f"folder:{tmp_path}")  # the bad file is no image: it does not end the classes
    assert data.files == ["b/1.png"] and data.skipped == [("a.png", "empty file")]
    assert data.classes == ["b"] and data.labels.tolist() == [0]


def test_links(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    write(inside / "real/1.png", picture(1))
    write(outside / "2.png", picture(2))
    write(outside / "deep/3.png", picture(3))
    write(inside / "album.jpg/1.png", picture(4))  # a folder may be called like an image
    (inside / "linked").symlink_to(outside)
    (inside / "again").symlink_to(outside / "deep")  # read once, by way of the first link
    (inside / "alias").symlink_to(inside / "real")  # a real name wins over a link's
    (inside / "real/up").symlink_to(inside)
    (inside / "real/top").symlink_to("/")
    (outside / "home").symlink_to(inside)
    (outside / "deep/back").symlink_to(outside)
    (inside / "file.png").symlink_to(outside / "2.png")
    data = load(f"folder:{inside}")
    assert data.files == [
        "again/3.png", "album.jpg/1.png", "file.png", "linked/2.png", "real/1.png",
    ]  # fmt: skip
    assert data.images[:, 0, 0, 0].tolist() == [3, 4, 2, 2, 1] and data.skipped == []
    (tmp_path / "elsewhere").symlink_to(inside)
    assert load(f"folder:{tmp_path}/elsewhere").files == data.files


def test_large_jpegs_are_reduced_well(tmp_path, monkeypatch):
    """A ramp: each output pixel is the ramp's value at its own centre."""
    ramp = np.linspace(20, 220, 640)
    wide = np.broadcast_to(ramp[None, :, None], (480, 640, 3)).round().astype(np.uint8)
    write(tmp_path / "a.jpg", Image.fromarray(wide), quality=95)
    drafts, real = [], JpegImagePlugin.JpegImageFile.draft

    def draft(self, mode, size):
        drafts.append(real(self, mode, size) and self.size)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", draft)
    row = load(f"folder:{tmp_path}", size=32).images[0, 0, 16].double()
    centres = 80 + (np.arange(32) + 0.5) * 15 - 0.5  # of the middle 480 columns
    assert (row - torch.from_numpy(np.interp(centres, np.arange(640), ramp))).abs().max() <= 2
    assert drafts == [(160, 120)]  # a quarter, because an eighth would be below twice the size


@pytest.mark.parametrize("size", [16, 33, 224])
def test_sizes(tmp_path, size):
    write(tmp_path / "a.png", picture([9, 99, 199], 16, 40))
    write(tmp_path / "b.jpg", picture([90, 90, 90], 500, 300))
    images = load(f"folder:{tmp_path}", size=size).images
    assert images.shape == (2, 3, size, size)
    assert (images[0] == torch.tensor([9, 99, 199])[:, None, None]).all()
    assert (images[1].int() - 90).abs().max() <= 1


# ---------------------------------------------------------------- files of every kind

S = 16
RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (3 * S, S, 4), dtype=np.uint8)
RGB, GREY, ALPHA = NOISE[:S, :, :3], NOISE[:S, :, :1], NOISE[:S, :, 3:]
DEEP = RANDOM.integers(0, 65536, (S, S, 1))
PLAIN = np.broadcast_to(RGB[0, 0], (50, 30, 3))
PALETTE = Image.fromarray(RGB).quantize(32)


def on_white(pixels):
    return (pixels * (ALPHA / 255) + 255.0 - ALPHA).round()


def image(pixels, mode=None):
    return Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()) if mode else (
        Image.fromarray(np.ascontiguousarray(pixels.squeeze()))
    )  # fmt: skip


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return {"exif": found}


def frames():
    return {"save_all": True, "append_images": [image(NOISE[S : 2 * S, :, 1])]}


# name of the file: what is written, with which options; the pixels that must be read, how closely
GOOD = {
    "rgb.png": (image(RGB), {}, RGB),
    "a/b/c/d/e/rgb.tiff": (image(RGB), {}, RGB),
    "Füße/rgb.bmp": (image(RGB), {}, RGB),
    "日本語/写真/rgb.ppm": (image(RGB), {}, RGB),
    "عربى/grey.PNG": (image(GREY), {}, GREY),
    "two  words/grey.PGM": (image(GREY), {}, GREY),
    "😀/grey with alpha.png": (image(NOISE[:S, :, ::3], "LA"), {}, on_white(GREY), 1),
    "<b>&amp;/alpha.png": (image(NOISE[:S], "RGBA"), {}, on_white(RGB), 1),
    "it's/palette.png": (PALETTE, {}, np.asarray(PALETTE.convert("RGB"))),
    "hole.png": (PALETTE, {"transparency": 7}, np.where(
        np.asarray(PALETTE)[..., None] == 7, 255, np.asarray(PALETTE.convert("RGB")))),
    "cmyk.TIF": (image(NOISE[:S], "CMYK"), {}, (255.0 - RGB) * (255.0 - ALPHA) / 255, 1),
    "deep.png": (image(DEEP.astype(np.uint16)), {}, (DEEP / 257).round()),
    "one bit.png": (image(GREY < 128), {}, np.where(GREY < 128, 255, 0)),
    "turned 3.png": (image(RGB), exif(3), np.rot90(RGB, 2)),
    "turned 6.png": (image(RGB), exif(6), np.rot90(RGB, 3)),
    "turned 8.png": (image(RGB), exif(8), np.rot90(RGB, 1)),
    "animated.GIF": (image(GREY), frames(), GREY),
    "animated.webp": (image(GREY), frames() | {"lossless": True}, GREY),
    "wide.Png": (image(NOISE[..., :3].swapaxes(0, 1)), {}, NOISE[S:-S, :, :3].swapaxes(0, 1)),
    "tall.WEBP": (image(NOISE[..., :3]), {"lossless": True}, NOISE[S:-S, :, :3]),
    "plain.JPG": (image(PLAIN), {}, RGB[:1, :1], 3),
    "tag.jpeg": (image(PLAIN), {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x03garbage"}, RGB[:1, :1], 3),
}  # fmt: skip


def png_chunk(kind, content):
    crc = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + crc


def bad_files(top):
    """One of every kind below `top`: {file: what the reason must be like}."""
    reasons = {}

    def path(name, reason):
        reasons[name] = reason
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        return top / name

    none = "not an image, or of a kind"
    path("bad/zero bytes.jpg", "empty file").write_bytes(b"")
    path("text.jpg", none).write_text("not an image")
    path("日本語/page.PNG", none).write_text("<html></html>")
    path("phone.heic", none).write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 99)
    for ending in ("jpg", "png", "gif", "bmp", "tif", "webp", "ppm"):
        whole = path(f"cut/half.{ending}", ".")
        image(RGB).save(whole)
        content = whole.read_bytes()
        whole.write_bytes(content[: len(content) // 2])
        path(f"cut/head.{ending}", ".").write_bytes(content[:9])
    header = png_chunk(b"IHDR", (20000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]))
    bomb = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 9))
    path("bomb.png", "400000000 pixels.*decompression bomb").write_bytes(bomb)
    Image.new("F", (S, S), 0.5).save(path("bad/float.tiff", "floats in 0..1 among whole numbers"))
    image(RGB).save(path("bad/locked.png", "Permission denied"))
    (top / "bad/locked.png").chmod(0)
    path("bad/broken.png", "broken link").symlink_to("nowhere.png")
    path("bad/self.png", "symbolic link").symlink_to("self.png")
    path("x.jpg", "a folder, not a file").mkdir()
    os.mkfifo(path("x.png", "a pipe, socket or device"))
    path("bad/pipe link.png", "a pipe, socket or device").symlink_to(top / "x.png")
    path("bad/null.png", "a pipe, socket or device").symlink_to("/dev/null")
    (top / "bad/shut").mkdir()
    image(RGB).save(top / "bad/shut/inner.png")
    reasons["bad/shut"] = "folder: Permission denied"
    return reasons


@pytest.fixture
def refused(monkeypatch):
    """Permissions that hold for root too, who may read everything."""
    access, scandir = os.access, os.scandir

    def walled(path):
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "access", lambda p, m: access(p, m) and Path(p).name != "locked.png")
    monkeypatch.setattr(os, "scandir", walled)


def test_files_of_every_kind(tmp_path, refused):
    top = tmp_path / "photos"
    top.mkdir()
    reasons = bad_files(top)
    for name, (picture_, options, *_) in GOOD.items():
        write(top / name, picture_, **options)
    (top / "deep.pgm").write_bytes(b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes())
    (top / "x.png.txt").write_text("no image, and not said to be one")
    data = load(f"folder:{top}", size=S)
    assert [file for file, _ in data.skipped] == sorted(reasons)
    for file, reason in data.skipped:
        assert re.search(reasons[file], reason) and "\n" not in reason, (file, reason)
        assert str(tmp_path) not in reason
    expected = GOOD | {"deep.pgm": GOOD["deep.png"]}
    assert data.files == sorted(expected)
    for seen, file in zip(data.images, data.files):
        _, _, pixels, *tolerance = expected[file]
        wanted = np.broadcast_to(pixels, (S, S, 3)).transpose(2, 0, 1)
        assert np.abs(seen.numpy().astype(float) - wanted).max() <= sum(tolerance), file
    assert data.labels is None  # some lie loose


def test_a_broken_tag_does_not_spoil_the_pixels(tmp_path, monkeypatch):
    def broken(*_, **__):  # as PIL does for some tags, depending on its version
        raise SyntaxError("not a TIFF file")

    write(tmp_path / "a.png", picture(7))
    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    assert (load(f"folder:{tmp_path}").images == 7).all()


def test_a_socket_does_not_hang(tmp_path, monkeypatch):
    write(tmp_path / "a.png", picture(1))
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("b.png")
        assert load("folder:.").skipped == [("b.png", "a pipe, socket or device, not a file")]


def test_names_that_are_no_text_can_be_written(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        write(tmp_path / name / f"{name}.png", picture(1))
        (tmp_path / name / f"{name}.jpg").write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes only text as names")
    data = load(f"folder:{tmp_path}")
    assert data.files == [r"caf\udce9/caf\udce9.png"] and data.classes == [r"caf\udce9"]
    assert data.skipped == [(r"caf\udce9/caf\udce9.jpg", "empty file")]
    assert load(f"folder:{tmp_path / name}").name == r"caf\udce9"
    with pytest.raises(ValueError, match=r"none of its 1 file can") as caught:
        (tmp_path / name / f"{name}.png").unlink()
        load(f"folder:{tmp_path}")
    str(caught.value).encode()


def test_progress_reaches_the_end(tmp_path):
    for k in range(130):
        write(tmp_path / f"{k}.png", picture(k))
    (tmp_path / "bad.png").write_text("none")
    seen = []
    load(f"folder:{tmp_path}", progress=lambda done, of: seen.append((done, of)))
    assert seen == [(64, 131), (128, 131), (131, 131)]
