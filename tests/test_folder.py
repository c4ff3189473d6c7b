"""Image folders: every kind of pixel, sizes, classes, order, splits, bad files."""

import numpy as np
import pytest
import torch
from PIL import Image

from dcl.data import load


def picture(value, h=2, w=2):
    """A PIL image of one value, whose type says the mode."""
    return Image.fromarray(np.full((h, w, *np.shape(value)), value, np.uint8))


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def one(path, **options):
    """The first pixel of a folder's only image."""
    data = load(f"folder:{path}", **options)
    assert data.images.shape[:2] == (1, 3)
    return data.images[0, :, 0, 0].tolist()


def palette(transparent):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    return image, {"transparency": 1} if transparent else {}


@pytest.mark.parametrize(
    ("image", "ending", "pixel"),
    [
        (picture(7), "png", [7, 7, 7]),
        (picture([1, 2, 3]), "PNG", [1, 2, 3]),
        (picture([1, 2, 3]), "bmp", [1, 2, 3]),
        (Image.new("1", (2, 2), 1), "png", [255, 255, 255]),
        # red, 128 of 255 opaque, on white: green and blue keep 127 of 255
        (picture([255, 0, 0, 128]), "png", [255, 127, 127]),
        (picture([255, 0, 0, 0]), "png", [255, 255, 255]),
        (Image.merge("LA", (picture(0), picture(51))), "png", [204, 204, 204]),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "tif", [255, 0, 0]),
        (Image.fromarray(np.full((2, 2), 65535, np.uint16)), "png", [255, 255, 255]),
        (Image.fromarray(np.full((2, 2), 128 * 257, np.uint16)), "png", [128, 128, 128]),
        (Image.fromarray(np.full((2, 2), 300, np.uint16)), "tif", [1, 1, 1]),
        (Image.fromarray(np.full((2, 2), 400, np.uint16)), "tif", [2, 2, 2]),  # 1.56
    ],
)
def test_every_mode_becomes_rgb(tmp_path, image, ending, pixel):
    write(tmp_path / f"a.{ending}", image)
    assert one(tmp_path) == pixel


@pytest.mark.parametrize(("transparent", "pixel"), [(False, [10, 20, 30]), (True, [255] * 3)])
def test_palettes(tmp_path, transparent, pixel):
    image, options = palette(transparent)
    write(tmp_path / "a.png", image, **options)
    assert one(tmp_path) == pixel


def test_photographs_stand_upright(tmp_path):
    image = Image.fromarray(np.array([[[0] * 3, [90] * 3, [180] * 3]], np.uint8))  # 3 wide, 1 high
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    write(tmp_path / "a.png", image, exif=exif)
    assert load(f"folder:{tmp_path}").images[0, 0].tolist() == [[0], [90], [180]]
    assert load(f"folder:{tmp_path}").images.shape == (1, 3, 3, 1)


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


def test_splits(tmp_path):
    for value, path in enumerate(
        ["train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"]
    ):
        write(tmp_path / path, picture(value))
    train, test = load(f"folder:{tmp_path}"), load(f"folder:{tmp_path}", "test")
    assert train.split == "train" and train.images[:, 0, 0, 0].tolist() == [0, 1]
    assert test.split == "test" and test.images[:, 0, 0, 0].tolist() == [2, 3]
    both = load(f"folder:{tmp_path}", "train+test")
    assert both.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert both.classes == ["a", "b", "c"] and both.labels.tolist() == [1, 2, 0, 2]
    with pytest.raises(ValueError, match=r"split must be one of train, test, train\+test"):
        load(f"folder:{tmp_path}", "all")
    with pytest.raises(ValueError, match="split must be one of all; got 'train'"):
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


def test_many_images_land_in_their_places(tmp_path):
    for k in range(200):  # more than a few blocks
        write(tmp_path / f"{k:03d}.png", picture([k, 255 - k, 0], 1, 1))
    images = load(f"folder:{tmp_path}").images
    assert images[:, 0, 0, 0].tolist() == list(range(200))
    assert images[:, 1, 0, 0].tolist() == [255 - k for k in range(200)]


def test_bad_folders_and_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder:PATH must name an existing folder"):
        load(f"folder:{tmp_path}/absent")
    with pytest.raises(ValueError, match="folder:PATH must have images.*found none"):
        load(f"folder:{tmp_path}")
    write(tmp_path / "a/1.png", picture(1))
    (tmp_path / "a/2.png").write_bytes((tmp_path / "a/1.png").read_bytes()[:40])
    with pytest.raises(ValueError, match="a/2.png can not be read as an image"):
        load(f"folder:{tmp_path}")
    (tmp_path / "a/2.png").write_text("no image at all")
    with pytest.raises(ValueError, match="a/2.png can not be read as an image"):
        load(f"folder:{tmp_path}")
    (tmp_path / "a/2.png").unlink()
    write(tmp_path / "a/3.tif", Image.new("F", (2, 2), 0.5))
    with pytest.raises(ValueError, match="a/3.tif.*float pixels"):
        load(f"folder:{tmp_path}")
