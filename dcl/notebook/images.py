"""The images of a chapter: a named set, or a reader's folder as far as a chapter can show it."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from dcl import data
from dcl.config import changed, with_rows
from dcl.data import Data
from dcl.data.arrays import is_vectors
from dcl.data.files import named
from dcl.data.folder import sizes

LEAST = 100
"""Images that a chapter needs: its figures, neighbours and held-out images are those of a set."""
LEAST_OF_CLASS = 10
"""Images that a class needs to be scored, and two must have: probes are trained on a half."""
SIDE, SMALLEST, LARGEST = 32, 8, 224
"""A folder's images become SIDE x SIDE, as by `dcl fit`, unless all are squares of one size, from
SMALLEST, less than which the networks would shrink to nothing, to LARGEST, the most that a recipe
is made for."""
REMEDY = "leave dataset empty: the profile has its own images"


def load(name: str, split: str | None = None, *, size: int | None = None) -> Data:
    """`dcl.data.load` for chapters, in which a folder has no parameter but its path.

    Without a size, the images of a folder become 32 x 32 unless all are squares of one size, from 8
    to 224 pixels. They have labels if there are 10 images a class, and
    in at least two classes; those of a split test only if train has the same classes. When the
    folder is read, lines say what differs from it.

    Raises ValueError if it cannot be read, a split has fewer than 100 images, or all are the same.
    """
    if not name.startswith("folder:"):
        return data.load(name, split, size=size)
    found, size = _read(name, size)
    for one in found:
        if split in (None, one.split):
            return one
    whole = data.load(name, split, size=size, scale=found[0].scale)  # train+test
    kept = all(one.labels is not None for one in found)
    return whole if kept else replace(whole, labels=None, classes=None)


def check_images(
    dataset: str, *, labels: bool = False, size: int | None = None, vectors: bool = False
) -> None:
    """Refuse a folder in the parameter `dataset` on which a chapter cannot run, see `load`.

    labels: the chapter is about scores, and cannot do without labels; vectors: it is about vectors,
    and not about images as all others. A named set is not loaded.
    Raises ValueError with what came, what was expected and what can be done.
    """
    if dataset and is_vectors(dataset) != vectors:
        nouns = ("vectors", "images") if vectors else ("images", "vectors")
        raise ValueError(
            f"dataset must name {nouns[0]} in this chapter; got {dataset!r}, which holds {nouns[1]}"
            f". `dcl fit` takes them; here, {REMEDY}"
        )
    if labels and dataset.endswith("unlabeled"):
        raise ValueError(f"dataset must have labels in this chapter; got {dataset!r}")
    if not dataset.startswith("folder:"):
        return
    _read.cache_clear()  # the reader may have changed the folder
    found, _ = _read(dataset, size)
    if labels and found[0].labels is None:
        raise ValueError(
            "dataset must have labels in this chapter, which is about scores; got none to use in "
            f"{dataset!r}. Sort the images into a subfolder for each class, {LEAST_OF_CLASS} or "
            f"more in each, or {REMEDY}"
        )


def fitted(config: Any, n: int) -> Any:
    """A configuration for n images, see `dcl.config.with_rows`; a line says what was lowered."""
    found = with_rows(config, n)
    if less := changed(config, found):
        print(f"to fit {n} images: {less}")
    return found


@lru_cache(maxsize=1)  # once for the check, and for the cell that shows the images
def _read(name: str, size: int | None) -> tuple[list[Data], int | None]:
    """What chapters train on and score, a whole folder or train and test; and their size."""
    try:
        known = data.splits(name)
        parts = [known[0], *(["test"] if "test" in known else [])]
        size = size or _side(name, parts)
        found = [data.load(name, parts[0], size=size)]
        found += [data.load(name, p, size=size, scale=found[0].scale) for p in parts[1:]]
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"dataset must name a folder of images; got {name!r}: {_plain(str(error))}. Mend the "
            f"folder, or {REMEDY}"
        ) from error
    for k, one in enumerate(found):
        told = replace(one, skipped=[row for row in one.skipped or [] if row[0] not in parts])
        for line in told.remarks():
            print(_plain(line))
        if len(one) < LEAST:
            where = f", in its part {one.split}" if len(parts) > 1 else ""
            left = f" ({len(told.skipped)} left out)" if told.skipped else ""
            raise ValueError(
                f"dataset must name a folder of {LEAST} images or more; got {len(one)}{left} in "
                f"{name!r}{where}. Add images, or {REMEDY}. `dcl fit` takes few images, too"
            )
        if all(torch.equal(image, one.images[0]) for image in one.images):
            raise ValueError(f"dataset must name images that differ; in {name!r} all are the same")
        found[k] = _scored(one, found[0])
    return found, size


def _plain(words: str) -> str:
    """Without the advice to ask for another split, for which chapters have no parameter."""
    return words.replace("; the split 'all' has it", "")


def _side(name: str, parts: list[str]) -> int | None:
    """The side that a folder's images must be given, None if they can keep theirs; a line says."""
    path = named("dataset", name.removeprefix("folder:"))
    seen = sizes(path, [""] if parts == ["all"] else parts) if path.is_dir() else set()
    sides = {side for size in seen for side in size}
    if not sides or len(sides) == 1 and SMALLEST <= max(sides) <= LARGEST:
        return None
    print(f"images with sides of {min(sides)} to {max(sides)} pixels: resized to {SIDE} x {SIDE}")
    return SIDE


def _scored(one: Data, train: Data) -> Data:
    """The set with train's numbers for its classes; without labels that no score can be of."""
    if one.labels is None or one.classes is None:
        return one
    known, counts, why = train.classes or [], one.labels.bincount(), ""
    if len(one) < LEAST_OF_CLASS * len(counts) or (counts >= LEAST_OF_CLASS).sum() < 2:
        why = f"scores need two classes, and {LEAST_OF_CLASS} images of each; "
        why += f"got {len(counts)}, of {counts.min()} to {counts.max()} images"
    elif not {*one.classes} <= {*known}:
        why = f"train has no labels for {min({*one.classes} - {*known})!r}"
    if why:
        print(f"the labels of {one.name}, {one.split}, are not used: {why}")
        return replace(one, labels=None, classes=None)
    number = torch.tensor([known.index(word) for word in one.classes])
    return replace(one, labels=number[one.labels], classes=known)
