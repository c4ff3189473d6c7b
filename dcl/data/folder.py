"""Images from a folder: every image below it, decoded by a few threads into one uint8 tensor."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcl.data import memmap
from dcl.data.files import ENDINGS, Bad, File, listed, one_line, printable

BLOCK = 2**23  # bytes of pixels that a thread decodes before it asks for more
Progress = Callable[[int, int], object]  # called with the number of images done, and of all


Shape = tuple[int, int, int]


class Found(NamedTuple):
    """The contents of a folder. `files` are the images' paths, in order; `skipped` all others."""

    images: Tensor
    labels: Tensor | None
    classes: list[str] | None
    files: list[str]
    skipped: list[Bad]


def folder(
    path: Path,
    parts: list[str],
    size: int | None = None,
    *,
    place: Path | None = None,
    cache_bytes: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """Read images uint8 (N,3,H,W), labels int64 (N,) or None, and the classes' names or None.

    path: a folder; parts: the subfolders to read, one after the other ([""]: the folder itself).
    Within a part files are sorted by their relative path; hidden files (.name) are left out. If
    every image lies in a subfolder, the subfolders are the classes, sorted by name over all parts.

    size: resize the shorter side and crop the centre. Transparency becomes white, 16 bits are
    scaled to 8, EXIF orientation is applied, of an animation the first frame is used.

    Links to files and folders are followed wherever they lead, but each folder is read once, under
    its own name if it lies below `path`, and a link to a folder that contains `path` is skipped,
    so that loops end. What cannot be read is listed in `skipped`, with the reason in one line;
    names that are not valid text are escaped, see `printable`.

    More than `cache_bytes` of pixels (default `dcl.data.memmap.budget`) are decoded once into a
    file in `place`, see `dcl.data.memmap.stored`. Raises FileNotFoundError without a folder,
    ValueError when not one image can be read or images differ in size and `size` is not given,
    OSError when that file cannot be written.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"folder:PATH must name an existing folder; got {path}")
    files, refused = listed(path, parts)
    if not files and not refused:
        raise ValueError(
            f"folder:PATH must have images ({' '.join(sorted(ENDINGS))}); found none below {path}"
        )
    first, shape = ("", (3, size, size)) if size else _first(path, files, refused)
    blocks = _blocks(path, files, size, first, shape, refused, progress)
    if place is None or len(files) * prod(shape) <= memmap.budget(cache_bytes):
        images, reasons = _in_memory(blocks, len(files), shape)
    else:
        key = memmap.key([list(file) for file in files], list(shape), size)
        images, reasons = memmap.stored(place, key, len(files) * prod(shape), shape, blocks)
    good = [file.name for k, file in enumerate(files) if k not in reasons]
    bad = sorted(refused + [(files[k].name, reasons[k]) for k in reasons])
    labels, classes = _classes([name.split("/")[bool(parts[0]) :] for name in good])
    return Found(
        images, labels, classes, [*map(printable, good)], [(printable(f), why) for f, why in bad]
    )


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
            _, height, width = decode(top / file.name, None).shape
            return file.name, (3, height, width)
        except ValueError as error:
            bad.append((file.name, str(error)))
    raise _none_readable(top, refused + bad)


def _none_readable(top: Path, bad: list[Bad]) -> ValueError:
    few = "; ".join(f"{printable(name)}: {reason}" for name, reason in sorted(bad)[:3])
    return ValueError(
        f"folder:PATH must have an image that can be read; none of the {len(bad)} below {top} can"
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
) -> memmap.Blocks:
    """Pixels (B,3,H,W) of consecutive files, and {number of the file: why it has none}.

    Threads, because PIL decodes without holding Python's lock; as fast as processes (see
    benchmarks/results/memory.json), which would need a guarded main module.
    """
    step = min(64, max(1, BLOCK // prod(shape)))

    def block(start: int) -> memmap.Block:
        rows = files[start : start + step]
        pixels, bad, n = np.empty((len(rows), *shape), np.uint8), {}, 0
        for k, file in enumerate(rows, start):
            try:
                image = decode(top / file.name, size)
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
        while starts or waiting:
            while starts and len(waiting) < 2 * threads:  # decoding never runs far ahead
                waiting.append(pool.submit(block, starts.popleft()))
            pixels, bad = waiting.popleft().result()
            reasons |= bad
            done += len(pixels) + len(bad)
            if progress:
                progress(done, len(files))
            yield pixels, bad
    finally:
        pool.shutdown(cancel_futures=True)
    if len(reasons) == len(files):
        raise _none_readable(top, refused + [(files[k].name, reasons[k]) for k in reasons])


def decode(path: Path, size: int | None) -> np.ndarray:
    """One image file as RGB uint8 (3,H,W). Raises ValueError with the reason in one line."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if size is not None:  # JPEG's own scaling by 2, 4 or 8, well above the wanted size
                opened.draft(None, (2 * size, 2 * size))
            opened.load()
            with suppress(Exception):  # a broken tag does not spoil the pixels
                ImageOps.exif_transpose(opened, in_place=True)
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255
                deep = np.asarray(image, np.int64).clip(0, 65535)
                image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
            if image.mode == "F":
                raise ValueError("float pixels have no agreed range")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            if size is not None and image.size != (size, size):
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.asarray(image).transpose(2, 0, 1)
    except UnidentifiedImageError as error:
        raise ValueError("not an image, or of a kind that PIL cannot read") from error
    except Exception as error:  # a damaged file makes PIL's readers raise nearly anything
        raise ValueError(one_line(error)) from error
