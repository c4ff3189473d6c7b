"""Images from a folder: every image below it, decoded by a few threads into one uint8 tensor."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcl.data import memmap
from dcl.data.files import ENDINGS, Bad, File, listed, printable
from dcl.data.pixels import Extent, Scale, decode, extent, image_limit, scale_of, size_of

BLOCK = 2**23  # bytes of pixels that a thread decodes before it asks for more
Progress = Callable[[int, int], object]  # called with the number of images done, and of all
WHOLE = -1  # in place of a file's number: what is said of the whole folder

Shape = tuple[int, int, int]


class Found(NamedTuple):
    """The contents of a folder. `files` are the images' paths, in order; `skipped` all others.

    scale: of pixels with more than 8 bits, if there are any, and `said` states it.
    """

    images: Tensor
    labels: Tensor | None
    classes: list[str] | None
    files: list[str]
    skipped: list[Bad]
    scale: Scale | None
    said: str


def folder(
    path: Path,
    parts: list[str],
    size: int | None = None,
    *,
    divided: Sequence[str] = (),
    place: Path | None = None,
    cache_bytes: int | None = None,
    progress: Progress | None = None,
    scale: Scale | None = None,
) -> Found:
    """Read images uint8 (N,3,H,W), labels int64 (N,) or None, and the classes' names or None.

    path: a folder; parts: the subfolders to read, one after the other ([""]: the folder itself).
    Within a part files are sorted by their relative path. If every image lies in a subfolder, the
    subfolders are the classes, sorted by name over all parts; those named in `divided` are splits,
    and their subfolders the classes.

    size: resize the shorter side and crop the centre. Transparency becomes white, EXIF orientation
    is applied, of an animation the first frame is used. Pixels of more than 8 bits, floats too, are
    brought to 8 on one scale for the whole folder, see `dcl.data.pixels.scale_of`; scale: the one
    to use instead, such as that of a training set.

    Links to files and folders are followed wherever they lead, but each folder is read once, under
    its own name if it lies below `path`, and a link to a folder that contains `path` is skipped,
    so that loops end. What cannot be read or is left out, see `dcl.data.files.listed`, is in
    `skipped`, with the reason in one line; names that are not valid text are escaped, see
    `printable`. Images of more pixels than `dcl.data.pixels.image_limit` are left out, too.

    More than `cache_bytes` of pixels (default `dcl.data.memmap.budget`) are decoded once into a
    file in `place`, see `dcl.data.memmap.stored`. Raises FileNotFoundError without a folder,
    ValueError when not one image can be read or images differ in size and `size` is not given,
    OSError when that file cannot be written.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{str(path)!r} must be an existing folder")
    files, refused = listed(path, parts)
    if not files and not refused:
        raise ValueError(
            f"{str(path)!r} must hold images ({' '.join(sorted(ENDINGS))}); found none below it"
        )
    with image_limit():
        first, shape = ("", (3, size, size)) if size else _first(path, files, refused)
        blocks = _blocks(path, files, size, first, shape, refused, progress, scale)
        if place is None or len(files) * prod(shape) <= memmap.budget(cache_bytes):
            images, reasons = _in_memory(blocks, len(files), shape)
        else:
            key = memmap.key([list(file) for file in files], list(shape), size, scale)
            images, reasons = memmap.stored(place, key, len(files) * prod(shape), shape, blocks)
    scale, said = json.loads(reasons.pop(WHOLE, '[null, ""]'))
    good = [file.name for k, file in enumerate(files) if k not in reasons]
    bad = sorted(refused + [(files[k].name, reasons[k]) for k in reasons])
    paths = (name.split("/") for name in good)
    labels, classes = _classes([names[names[0] in divided :] for names in paths])
    skipped = [(printable(name), why) for name, why in bad]
    used = tuple(scale) if scale else None
    return Found(images, labels, classes, [*map(printable, good)], skipped, used, said)


def sizes(path: Path, parts: list[str]) -> set[tuple[int, int]]:
    """Height and width of the images that `folder` would read, from their headers alone."""
    files, _ = listed(path, parts)
    with image_limit(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {size for size in pool.map(lambda file: size_of(path / file.name), files) if size}


def _classes(paths: list[list[str]]) -> tuple[Tensor | None, list[str] | None]:
    if any(len(path) == 1 for path in paths):
        return None, None
    classes = sorted({path[0] for path in paths})
    number = {name: k for k, name in enumerate(classes)}
    return torch.tensor([number[path[0]] for path in paths]), [*map(printable, classes)]


def _first(top: Path, files: list[File], refused: list[Bad]) -> tuple[str, Shape]:
    """Name and shape of the first image that can be read."""
    bad = []
    for file in files:
        try:
            _, height, width = decode(top / file.name, None, (0, 1)).shape
            return file.name, (3, height, width)
        except ValueError as error:
            bad.append((file.name, str(error)))
    raise _none_readable(top, refused + bad)


def _none_readable(top: Path, bad: list[Bad]) -> ValueError:
    few = "; ".join(f"{printable(name)}: {reason}" for name, reason in sorted(bad)[:3])
    count = f"{len(bad)} file{'s' * (len(bad) > 1)}"
    return ValueError(
        f"{str(top)!r} must hold an image that can be read; none of its {count} can"
        f" ({few}{'; ...' if len(bad) > 3 else ''})"
    )


def _in_memory(blocks: memmap.Blocks, count: int, shape: Shape) -> tuple[Tensor, dict[int, str]]:
    images, n = np.empty((count, *shape), np.uint8), 0
    reasons: dict[int, str] = {}
    with closing(blocks):
        for pixels, bad in blocks:
            images[n : n + len(pixels)] = pixels
            reasons |= bad
            n += len(pixels)
    return torch.from_numpy(images[:n]), reasons


def _blocks(
    top: Path,
    files: list[File],
    size: int | None,
    first: str,
    shape: Shape,
    refused: list[Bad],
    progress: Progress | None,
    scale: Scale | None,
) -> memmap.Blocks:
    """Pixels (B,3,H,W) of consecutive files, and {number of the file: why it has none}.

    Under the number `WHOLE` the scale of deep pixels, if there are any, and how it is stated.

    Threads, because PIL decodes without holding Python's lock; as fast as processes (see
    benchmarks/results/memory.json), which would need a guarded main module.
    """
    step = min(64, max(1, BLOCK // prod(shape)))

    def block(start: int) -> memmap.Block:
        rows = files[start : start + step]
        pixels, bad, n = np.empty((len(rows), *shape), np.uint8), {}, 0
        for k, file in enumerate(rows, start):
            if k in odd:
                bad[k] = odd[k]
                continue
            try:
                image = decode(top / file.name, size, scale)
            except ValueError as error:
                bad[k] = str(error)
                continue
            if image.shape != shape:
                raise ValueError(
                    f"size must be given, because the images differ in size: {printable(first)} "
                    f"is {shape[2]}x{shape[1]}, {printable(file.name)} is "
                    f"{image.shape[2]}x{image.shape[1]}"
                )
            pixels[n] = image
            n += 1
        return pixels[:n], bad

    threads = min(8, os.cpu_count() or 1)
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[memmap.Block]]()
    starts, done = deque(range(0, len(files), step)), 0
    reasons: dict[int, str] = {}
    try:
        found = pool.map(
            lambda k: [extent(top / file.name) for file in files[k : k + step]], [*starts]
        )
        scale, said, odd = _scale(chain.from_iterable(found), scale)
        while starts or waiting:
            while starts and len(waiting) < 2 * threads:  # decoding never runs far ahead
                waiting.append(pool.submit(block, starts.popleft()))
            pixels, bad = waiting.popleft().result()
            reasons |= bad
            done += len(pixels) + len(bad)
            if progress:
                progress(done, len(files))
            yield pixels, bad | said
    finally:
        pool.shutdown(cancel_futures=True)
    if len(reasons) == len(files):
        raise _none_readable(top, refused + [(files[k].name, reasons[k]) for k in reasons])


def _scale(
    extents: Iterable[Extent | None], given: Scale | None
) -> tuple[Scale | None, dict[int, str], dict[int, str]]:
    """The scale of deep pixels, `given` or from their extents, and the note `WHOLE` about it.

    Also why some files have no image: floats in 0..1 and whole numbers have no common scale.
    """
    deep = {k: e for k, e in enumerate(extents) if e}
    units = {k for k, e in deep.items() if e.real and e.high <= 1}
    odd = units if any(not e.real for e in deep.values()) else set()
    if not deep:
        return given, {}, {}
    scale, said = scale_of([e for k, e in deep.items() if k not in odd])
    if given:
        scale = given
        said = f"pixels of more than 8 bits: {given[0]:g} becomes black and {given[1]:g} white, "
        said += "as in training"
    reason = f"floats in 0..1 among whole numbers up to {scale[1]:g}: no common scale"
    return scale, {WHOLE: json.dumps([scale, said])}, dict.fromkeys(odd, reason)
