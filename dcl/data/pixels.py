"""One image file as 8-bit RGB: deeper pixels on one scale for a whole folder, alpha on white."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcl.data.files import one_line

if TYPE_CHECKING:
    from PIL import Image

Scale = tuple[float, float]
"""Which pixel becomes black, and which white, of all images with more than 8 bits."""

SHALLOW = {".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".webp", ".bmp", ".dib"}  # 8 bits at most
SIGNED = "L;8S"  # 8 bits with a sign, which PIL reads as without
PPM = "RGB;16P"  # and where its pixels begin
SWAPPED = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}


class Extent(NamedTuple):
    """The lowest and the highest pixel of an image with more than 8 bits."""

    low: float
    high: float
    real: bool
    """Whether its pixels are floats."""


def extent(path: Path) -> Extent | None:
    """The extent of an image file; None if it has 8 bits, or no image that can be read."""
    if path.suffix.lower() in SHALLOW:
        return None
    try:
        with path.open("rb") as file:
            head = file.read(25)
        if head.startswith(b"\x89PNG") and head[24:] < b"\x10":
            return None
        image, raw = _opened(path, load=False)
        if not _is_deep(image.mode, raw):
            return None
        pixels, alpha = _deep(path, *_opened(path))
        seen = pixels if alpha is None else pixels[alpha > 0]
        return Extent(float(seen.min()), float(seen.max()), pixels.dtype.kind == "f")
    except Exception:  # `decode` says why
        return None


def size_of(path: Path) -> tuple[int, int] | None:
    """Height and width of an upright image, from its header; None if that cannot be read."""
    from PIL import Image

    with suppress(Exception), Image.open(path) as image:  # `decode` says why
        turned = image.getexif().get(0x0112, 1) > 4
        return (image.width, image.height) if turned else (image.height, image.width)
    return None


def scale_of(extents: list[Extent]) -> tuple[Scale, str]:
    """The scale for a folder's deep images, from their extents, and the sentence that states it.

    Black is 0, and white the largest number of the fewest bits, at least 8, that hold every pixel
    (4095 for 12 bits; 1 if all are floats in 0..1). If the pixels are negative somewhere, or take
    less than a quarter of that range, black is the lowest pixel and white the highest.
    """
    low, high = min(e.low for e in extents), max(e.high for e in extents)
    unit = high <= 1 and all(e.real for e in extents)
    full = 1.0 if unit else float(2 ** max(8, int(np.ceil(high)).bit_length()) - 1)
    stretched = low < 0 or 0 < high - low < full / 4
    black, white = (low, high) if stretched and low < high else (min(low, 0.0), full)
    said = (
        f"pixels of more than 8 bits, from {low:g} to {high:g}: in all {len(extents)} images that "
        f"have them {black:g} becomes black and {white:g} white"
    )
    middle = (median(e.high for e in extents) - black) / (white - black)
    if middle < 1 / 8:
        said += (
            f"; a few bright images set this scale: half of the images reach {middle:.0%} of white"
        )
    return (black, white), said


def decode(path: Path, size: int | None, scale: Scale | None = None) -> np.ndarray:
    """One image file as RGB uint8 (3,H,W). Raises ValueError with the reason in one line.

    size: as in `dcl.data.folder.folder`; scale: for pixels of more than 8 bits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image, raw = _opened(path, size)
        if _is_deep(image.mode, raw):
            if scale is None:
                raise ValueError(f"more than 8 bits a pixel, which {path.suffix} cannot have")
            image = Image.fromarray(_scaled(*_deep(path, image, raw), scale))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        if size is not None and image.size != (size, size):
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        return np.asarray(image).transpose(2, 0, 1)
    except UnidentifiedImageError as error:
        raise ValueError("not an image, or of a kind that PIL cannot read") from error
    except Image.DecompressionBombError as error:
        count = re.findall(r"\d+", str(error))[0]
        raise ValueError(
            f"{count} pixels, perhaps a decompression bomb; DCL_MAX_PIXELS={count} lets it in"
        ) from error
    except Exception as error:  # a damaged file makes PIL's readers raise nearly anything
        raise ValueError(one_line(error)) from error


@contextmanager
def image_limit() -> Iterator[None]:
    """Within it, images of any size up to $DCL_MAX_PIXELS are read without a warning.

    By default up to PIL's own limit, 178,956,970 pixels, beyond which `decode` refuses them. Raises
    ValueError for anything but a whole number.
    """
    from PIL import Image

    before, text = Image.MAX_IMAGE_PIXELS, os.environ.get("DCL_MAX_PIXELS", "")
    if text and not text.isdecimal():
        raise ValueError(f"DCL_MAX_PIXELS must be a whole number of pixels; got {text!r}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # they name no file
            if text:  # PIL warns from its number on, and refuses from twice that
                Image.MAX_IMAGE_PIXELS = int(text) / 2  # type: ignore
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _opened(
    path: Path, size: int | None = None, raw: str = "", load: bool = True
) -> "tuple[Image.Image, str]":
    """An image, upright, and PIL's name for its pixels in the file; `raw` reads them as others."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        tiles = getattr(image, "tile", [])
        args = tiles[0][3] if tiles else ""
        found = (args[0] if isinstance(args, tuple) and args else args) or ""
        if tiles and tiles[0][0] == "libtiff" and found[-2:] in ("BS", "BF"):
            raw = raw or found[:-2] + "N" + found[-1]  # libtiff has put the bytes in order
        if image.mode == "L" and getattr(image, "tag_v2", {}).get(339) in (2, (2,)):
            found = SIGNED
        if tiles and tiles[0][0] == "ppm" and args == ("RGB", 65535):
            found = f"{PPM}{tiles[0][2]}"
        if raw:
            args = raw if isinstance(args, str) else (raw, *args[1:])
            image.tile = [getattr(t, "_make", tuple)((*t[:3], args)) for t in tiles]  # type: ignore
        if size is not None:  # JPEG's own scaling by 2, 4 or 8, well above the wanted size
            image.draft(None, (2 * size, 2 * size))
        if load:
            image.load()
            with suppress(Exception):  # a broken tag does not spoil the pixels
                ImageOps.exif_transpose(image, in_place=True)
        return image, str(found)


def _is_deep(mode: str, raw: str) -> bool:
    return (
        mode[0] in "IF"
        or raw == SIGNED
        or raw.startswith(PPM)
        or re.fullmatch(r"(RGB|RGBA|RGBX|LA);16[BLN]", raw) is not None
    )


def _deep(path: Path, image: "Image.Image", raw: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Deep or signed pixels, whole (H,W) or (H,W,3), or floats (H,W), and alpha (H,W) in 0..1."""
    if raw == SIGNED:
        return np.asarray(image).view(np.int8), None
    if raw.startswith(PPM):  # of which PIL keeps the high bytes
        words = np.fromfile(path, ">u2", image.width * image.height * 3, offset=int(raw[7:]))
        return words.reshape(image.height, image.width, 3).astype(int), None
    if image.mode[0] in "IF":
        pixels = np.asarray(image)
        if raw == "I;32N" and pixels.min() < 0:  # unsigned, read as signed
            pixels = pixels.astype(np.int64) % 2**32
        if not np.isfinite(pixels).all():
            raise ValueError("NaN or infinity among its pixels")
        hole = image.info.get("transparency")
        alpha = (pixels != hole).astype(float) if isinstance(hole, int) else None
        return pixels, alpha
    # PIL keeps the high byte of two; with their order swapped it takes the low one for it
    if raw == "LA;16B":
        four = np.asarray(_opened(path, raw="RGBA")[0]).astype(int)
        both = four[..., 0::2] * 256 + four[..., 1::2]
    else:
        low, _ = _opened(path, raw=raw[:-1] + SWAPPED[raw[-1]])
        both = np.asarray(image).astype(int) * 256 + np.asarray(low)
    if raw.startswith("LA"):
        return both[..., 0], both[..., 1] / 65535
    return both[..., :3], both[..., 3] / 65535 if raw.startswith("RGBA") else None


def _scaled(pixels: np.ndarray, alpha: np.ndarray | None, scale: Scale) -> np.ndarray:
    black, white = scale
    light = ((pixels.astype(float) - black) * 255 / (white - black)).clip(0, 255)
    if alpha is not None:
        cover = alpha if light.ndim == 2 else alpha[..., None]
        light = light * cover + 255 * (1 - cover)
    return np.rint(light).astype(np.uint8)
