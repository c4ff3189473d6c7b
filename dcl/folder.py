"""Images from a folder: every file below it, decoded by a few threads into one uint8 tensor."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
BLOCK = 64  # images a thread decodes before it asks for more


def folder(
    path: Path, parts: list[str], size: int | None = None
) -> tuple[Tensor, Tensor | None, list[str] | None]:
    """Read images uint8 (N,3,H,W), labels int64 (N,) or None, and the classes' names or None.

    path: a folder; parts: the sub-folders of it to read, one after the other ([""]: itself).
    Within a part files are sorted by their relative path. If every image lies in a sub-folder,
    these are the classes, sorted by name over all parts. size: resize the shorter side and cut
    out the centre. Raises FileNotFoundError without a folder, ValueError without images, with
    images of different sizes and no size, or with a file that can not be read.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"folder:PATH must name an existing folder; got {path}")
    files = [(path / part, file) for part in parts for file in _files(path / part)]
    if not files:
        raise ValueError(
            f"folder:PATH must have images ({' '.join(sorted(ENDINGS))}); found none below {path}"
        )
    first = _decode(*files[0], size)
    images = np.empty((len(files), *first.shape), np.uint8)

    def fill(start: int) -> None:
        for k in range(start, min(start + BLOCK, len(files))):
            image = _decode(*files[k], size)
            if image.shape != first.shape:
                (_, h, w), (_, h_k, w_k) = first.shape, image.shape
                raise ValueError(
                    "size must be given, because the images differ in size: "
                    f"{files[0][1]} is {w}x{h}, {files[k][1]} is {w_k}x{h_k}"
                )
            images[k] = image

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(fill, range(0, len(files), BLOCK)))
    if any("/" not in file for _, file in files):
        return torch.from_numpy(images), None, None
    names = [file.split("/")[0] for _, file in files]
    classes = sorted(set(names))
    number = {name: k for k, name in enumerate(classes)}
    return torch.from_numpy(images), torch.tensor([number[name] for name in names]), classes


def _files(top: Path) -> list[str]:
    """Relative paths of the images below a folder, sorted, without hidden files and folders."""
    paths = (file.relative_to(top) for file in top.rglob("*") if file.suffix.lower() in ENDINGS)
    visible = (p for p in paths if not any(part.startswith(".") for part in p.parts))
    return sorted(p.as_posix() for p in visible if (top / p).is_file())


def _decode(top: Path, file: str, size: int | None) -> np.ndarray:
    """One image file as RGB (3,H,W): what is transparent turns white, 16 bits are scaled to 8."""
    from PIL import Image, ImageOps

    try:
        with Image.open(top / file) as opened:
            ImageOps.exif_transpose(opened, in_place=True)  # as the camera was held
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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} can not be read as an image: {error}") from error
