"""A chapter takes the folder that a reader has, or refuses it in words before anything trains."""

import os

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

import claims
from dcl.config import check_rows
from dcl.data import load as plain
from dcl.data.folder import sizes
from dcl.notebook.images import LEAST, check_images, fitted, load
from dcl.recipes import recipe
from sabotage import CHAPTERS, tags

OF_VECTORS = "photographs"
STEMS = sorted(path.stem for path in CHAPTERS.glob("*.ipynb") if path.stem != OF_VECTORS)
OF_SCORES = ["compare", "metrics", "your-images"]
"""Chapters that cannot do without labels."""


def images(folder, *counts, sides=((16, 16),), mode="RGB"):
    """Random pictures, each count n or (subfolder, n); the sides take turns."""
    random = np.random.default_rng(0)
    for count in counts:
        where, n = count if isinstance(count, tuple) else ("", count)
        (folder / where).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            pixels = random.integers(0, 256, (*sides[k % len(sides)], 4), np.uint8)
            picture = Image.fromarray(pixels, "RGBA").convert(mode)
            picture.save(folder / where / f"{k:03}.png")
    return folder


def broken(folder):
    folder.mkdir(parents=True)
    (folder / "photo.jpg").write_bytes(b"no image")
    return folder


def array(folder):
    folder.mkdir(parents=True)
    np.save(folder / "photos.npy", np.zeros((120, 16, 16), np.uint8))
    return folder / "photos.npy"


def check(chapter, dataset):
    """The names that a chapter's cells have defined, once its check cell is through."""
    cells = nbformat.read(CHAPTERS / f"{chapter}.ipynb", as_version=4).cells
    given = f"profile, dataset, device = 'smoke', {str(dataset)!r}, 'cpu'"
    sources = [cell.source for cell in cells if "parameters" in tags(cell)] + [given]
    return claims.play(sources + [cell.source for cell in cells if "check" in tags(cell)])


REFUSED = {
    "12 images": (lambda f: images(f, 12), "100 images or more; got 12 in"),
    "3 images": (lambda f: images(f, 3), "100 images or more; got 3 in"),
    "20 images of 2 classes": (
        lambda f: images(f, ("a", 10), ("b", 10)),
        "100 images or more; got 20 in",
    ),
    "2 classes of 1": (lambda f: images(f, ("a", 1), ("b", 1)), "100 images or more; got 2 in"),
    "a short test part": (
        lambda f: images(f, ("train/a", 60), ("train/b", 60), ("test/a", 2), ("test/b", 1)),
        "100 images or more; got 3 in .*, in its part test",
    ),
    "an empty test part": (
        lambda f: images(f, ("train/a", 60), ("train/b", 60), ("test", 0)),
        "images; got .*none of its .* not in the split 'test'",
    ),
    "one broken file": (broken, "images; got .*photo.jpg: not an image"),
    "nothing": (lambda f: images(f, 0), "images; got .*found none below"),
    "nowhere": (lambda f: f, "images; got .*must be an existing folder"),
    "an array": (array, "images; got .*must be an existing folder"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_check_of_every_chapter_refuses_a_folder_in_words(what, tmp_path):
    make, words = REFUSED[what]
    dataset = f"folder:{make(tmp_path / 'f')}"
    for chapter in STEMS:
        with pytest.raises(ValueError, match=f"^dataset must name a folder of {words}") as error:
            check(chapter, dataset)
        assert dataset in str(error.value) and "or leave dataset empty" in str(error.value)
        assert "the split 'all'" not in str(error.value)  # chapters have no parameter for it


UNSCORED = {
    "no labels": lambda f: images(f, LEAST),
    "one class": lambda f: images(f, ("only", LEAST)),
    "two classes, one empty": lambda f: images(f, ("a", LEAST), ("b", 0)),
    "one class with one image": lambda f: images(f, ("a", LEAST), ("b", 1)),
    "a class for each image": lambda f: images(f, *((f"c{k}", 1) for k in range(LEAST))),
}


@pytest.mark.parametrize("what", UNSCORED)
def test_without_labels_chapters_about_scores_are_refused_and_others_run(what, tmp_path, capsys):
    dataset = f"folder:{UNSCORED[what](tmp_path / 'f')}"
    for chapter in OF_SCORES:
        with pytest.raises(ValueError, match="^dataset must have labels.*subfolder for each class"):
            check(chapter, dataset)
    capsys.readouterr()
    check_images(dataset)
    said = capsys.readouterr().out
    assert load(dataset).labels is None
    assert ("are not used: scores need two classes" in said) == (what != "no labels")
    with pytest.raises(ValueError, match="^dataset must have labels.*'stl10:unlabeled'"):
        check_images("stl10:unlabeled", labels=True)


@pytest.mark.parametrize("chapter", STEMS)
def test_a_chapter_reads_mixed_sizes_and_has_settings_for_few_images(chapter, tmp_path, capsys):
    """Its cells up to the settings, on the fewest images: nothing is to be trained with more."""
    counts = [("a", 60), ("b", 60)] if chapter in OF_SCORES else [LEAST]
    folder = images(tmp_path / "f", *counts, sides=((20, 16), (40, 9)))
    cells = [c for c in claims.read(chapter).cells if c.cell_type == "code"]
    cells = [cell for cell in cells if "figure" not in tags(cell)]
    (last,) = [k for k, cell in enumerate(cells) if "config" in tags(cell)]
    (first,) = [k for k, cell in enumerate(cells) if "parameters" in tags(cell)]
    given = f"profile, dataset, device = 'smoke', 'folder:{folder}', 'cpu'"
    sources = [cell.source for cell in cells[: last + 1]]
    names = claims.play(sources[: first + 1] + [given] + sources[first + 1 :])
    said = capsys.readouterr().out
    data = names.get("images") if chapter == "metrics" else names["data"]
    assert data.images.shape[1:] == (3, 32, 32)
    assert ("with sides of 9 to 40 pixels: resized to 32 x 32" in said) or (
        chapter == "your-images"  # as dcl fit
    )
    settings = names["config"]
    if chapter != "metrics":
        for config in settings.values() if isinstance(settings, dict) else [settings]:
            check_rows(config, len(data))


# ---------------------------------------------------------------- by hand


def test_images_of_one_size_are_left_alone(tmp_path, capsys):
    for n, sides in enumerate([((8, 8),), ((224, 224),)]):
        folder = images(tmp_path / str(n), ("a", 60), ("b", 60), sides=sides)
        found, whole = load(f"folder:{folder}"), plain(f"folder:{folder}")
        assert found.checksum == whole.checksum and found.classes == ["a", "b"]
        assert capsys.readouterr().out == ""
    for n, sides in enumerate([((7, 7),), ((225, 225),), ((16, 24),)]):
        folder = images(tmp_path / f"r{n}", LEAST, sides=sides)
        assert load(f"folder:{folder}").images.shape[2:] == (32, 32)
        assert load(f"folder:{folder}", size=12).images.shape[2:] == (12, 12)
        assert "resized to 32 x 32\n" in capsys.readouterr().out


def test_a_photo_taken_sideways_has_the_size_it_is_shown_with(tmp_path):
    note = Image.Exif()
    note[0x0112] = 6
    Image.new("RGB", (16, 24)).save(tmp_path / "sideways.jpg", exif=note)
    broken(tmp_path / "a")
    assert sizes(tmp_path, [""]) == {(16, 24)}


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_all_kinds_of_pixels_are_colours(mode, tmp_path):
    folder = images(tmp_path / "f", ("a", 60), ("b", 60), mode=mode)
    check_images(f"folder:{folder}", labels=True)
    assert load(f"folder:{folder}").images.shape == (120, 3, 16, 16)


def test_train_and_test_have_one_size_and_one_numbering(tmp_path, capsys):
    parts = [("train/a", 100), ("train/b", 50), ("train/c", 50), ("test/b", 60), ("test/c", 60)]
    folder = images(tmp_path / "f", *parts)
    images(folder, ("test/c", 1), sides=((30, 30),))
    (folder / "test" / "c" / "broken.png").write_bytes(b"no image")
    images(folder, ("val/a", 3))
    name = f"folder:{folder}"
    check_images(name, labels=True)
    said = capsys.readouterr().out
    assert "skipped val: a folder with 3 images not in the split 'train'\n" in said
    assert "test/c/broken.png: not an image" in said and "skipped train" not in said
    train, test, both = load(name), load(name, "test"), load(name, "train+test")
    assert train.images.shape[2:] == test.images.shape[2:] == both.images.shape[2:] == (32, 32)
    assert test.labels.unique().tolist() == [1, 2] and test.classes == ["a", "b", "c"]
    torch.testing.assert_close(both.labels, torch.cat([train.labels, test.labels]))
    assert capsys.readouterr().out == ""  # said once


def test_a_test_part_of_other_classes_is_not_scored(tmp_path, capsys):
    folder = images(tmp_path / "f", ("train/a", 60), ("train/b", 60), ("test/x", 60))
    images(folder, ("test/y", 60))
    name = f"folder:{folder}"
    check_images(name, labels=True)  # those of train are there
    assert "labels of f, test, are not used: train has no labels for 'x'" in capsys.readouterr().out
    assert load(name).labels is not None and load(name, "test").labels is None
    assert load(name, "train+test").labels is None


def test_a_folder_is_read_once_and_again_after_a_check(tmp_path):
    folder = images(tmp_path / "f", LEAST)
    name = f"folder:{folder}"
    check_images(name)
    assert load(name) is load(name, "all")
    os.remove(folder / "000.png")
    images(folder, ("more", 2))
    assert len(load(name)) == LEAST
    check_images(name)
    assert len(load(name)) == LEAST + 1


def test_images_that_are_all_the_same_are_refused(tmp_path):
    for k in range(LEAST):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"{k}.png")
    with pytest.raises(ValueError, match="^dataset must name images that differ; in .* all are"):
        check_images(f"folder:{tmp_path}")


def test_named_sets_are_as_they_are():
    check_images(""), check_images("digits", labels=True), check_images("mnist:train+test")
    check_images("", vectors=True), check_images("photographs", vectors=True)
    for name, vectors in (("photographs", False), ("digits", True), ("folder:x", True)):
        with pytest.raises(ValueError, match=f"dataset must name .* in this chapter; got '{name}'"):
            check_images(name, vectors=vectors)
    assert load("digits").checksum == plain("digits").checksum


def test_what_is_lowered_is_said(capsys):
    config = fitted(recipe("scan", "smoke"), 100)
    assert capsys.readouterr().out == (
        "to fit 100 images: scan.batch_size 100 (not 128), selflabel.batch_size 100 (not 128)\n"
    )
    check_rows(config, 100)
    assert fitted(config, 100) == config and capsys.readouterr().out == ""
