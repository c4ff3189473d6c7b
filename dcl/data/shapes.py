"""A procedural data set in which shape is the class and colour is a nuisance.

Six shapes in random colours, sizes, places and angles. The background takes one of five hues,
and every (shape, hue) pair has the same number of images, so that hue says nothing about the
class: a method that clusters by colour scores zero. That is the shortcut DeepCluster's Sobel
front end is there to close (chapter deepcluster).

Every byte is the same on every machine. The draws are the raw integers of numpy's PCG64, whose
stream is frozen, and what follows uses only operations that IEEE 754 rounds in one way
(``+ - * /``) or integers: no sine, no exponential, no sum whose order may change.
"""

import numpy as np

SHAPES = ["disc", "square", "triangle", "cross", "ring", "bar"]
HUES = {
    "red": (230, 40, 40),
    "yellow": (220, 200, 30),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "magenta": (210, 50, 210),
}
SIZE = 24
PER_PAIR = 66  # images for each (shape, hue) pair: 6 * 5 * 66 = 1980
GRID = 4  # coverage of a pixel is counted at GRID x GRID points


class Draws:
    """Uniform integers from the frozen raw stream of PCG64."""

    def __init__(self, seed: int) -> None:
        self.source = np.random.PCG64(seed)

    def __call__(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Integers in [low, high], int64, of the given shape (the bias is below 2**-24)."""
        raw = self.source.random_raw(int(np.prod(shape))).reshape(shape)
        return ((raw >> np.uint64(32)) * np.uint64(high - low + 1) >> np.uint64(32)).astype(
            np.int64
        ) + low


def inside(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points (u right, v down), in units of the shape's radius, lie in the shape."""
    a, b, square = abs(u), abs(v), u * u + v * v
    near, far = np.minimum(a, b), np.maximum(a, b)
    return (
        square <= 1.0,
        far <= 0.875,
        (b <= 0.8125) & (a <= 0.5625 * (v + 0.8125)),
        (near <= 0.28125) & (far <= 1.0),
        (square <= 1.0) & (square >= 0.3125),
        (b <= 0.28125) & (a <= 1.125),
    )[shape]


def tint(hue: np.ndarray, luma: np.ndarray) -> np.ndarray:
    """The hues (N,) darkened or lightened to a grey value luma (N,) in 0..255: (N,3) integers."""
    base = np.array(list(HUES.values()), np.int64)[hue]  # (N,3)
    own = grey(base)[:, None]
    luma = luma[:, None]
    return np.where(
        luma <= own, base * luma // own, base + (255 - base) * (luma - own) // (255 - own)
    )


def grey(rgb: np.ndarray) -> np.ndarray:
    """Grey value of integer colours (N,3): .299 R + .587 G + .114 B in 256ths."""
    return (77 * rgb[:, 0] + 150 * rgb[:, 1] + 29 * rgb[:, 2]) // 256


def shapes(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the data set: images uint8 (1980,3,24,24), labels and hue int64 (1980,).

    ``labels`` index `SHAPES`, ``hue`` (of the background: the nuisance) indexes `HUES`.
    """
    draw = Draws(seed)
    pairs = len(SHAPES) * len(HUES)
    n = pairs * PER_PAIR
    order = np.argsort(draw(0, 2**31 - 1, n), kind="stable")
    labels, hue = (order % pairs) // len(HUES), order % len(HUES)

    back = draw(80, 175, n)  # grey value of the background
    sign = 2 * draw(0, 1, n) - 1
    front = back + sign * draw(60, 80, n)
    other = (hue + draw(1, len(HUES) - 1, n)) % len(HUES)
    colours = np.stack([tint(hue, back), tint(other, front)])  # (2,N,3)
    centre = draw(-96, 96, n, 2) / 32  # up to 3 pixels from the middle
    radius = draw(192, 272, n) / 32  # 6 to 8.5 pixels
    half = draw(-45, 45, n) / 256  # tangent of half the angle, within 20 degrees
    slope = draw(-24, 24, n, 2)  # of the background's shading
    noise = draw(-6, 6, n, SIZE, SIZE, 3) + draw(-6, 6, n, SIZE, SIZE, 3)

    points = (np.arange(SIZE * GRID) + 0.5) / GRID - SIZE / 2
    pixels = 2 * np.arange(SIZE) - (SIZE - 1)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for k in range(n):
        t = half[k]
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        x, y = points[None, :] - centre[k, 0], points[:, None] - centre[k, 1]
        u, v = (cos * x + sin * y) / radius[k], (cos * y - sin * x) / radius[k]
        hit = inside(labels[k], u, v).reshape(SIZE, GRID, SIZE, GRID)
        cover = hit.sum((1, 3))[..., None]  # 0..16
        shade = (slope[k, 0] * pixels[None, :] + slope[k, 1] * pixels[:, None]) // SIZE
        colour = (colours[0, k] * (GRID * GRID - cover) + colours[1, k] * cover) // (GRID * GRID)
        images[k] = np.clip(colour + shade[..., None] + noise[k], 0, 255)
    return images.transpose(0, 3, 1, 2).copy(), labels, hue
