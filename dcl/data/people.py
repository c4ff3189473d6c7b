"""A procedural re-identification set: drawn people, each seen by several cameras.

A person is a combination of hair, skin, clothes, bag and build. A camera has a background, and
a cast that multiplies the three colours; every photograph has a pose, a crop and its own light.
Two pictures of one camera are more alike than two of one person, which is the difficulty of
re-identification (chapter rlcc). Bytes are the same on every machine, as in `dcl.data.shapes`.
"""

from typing import NamedTuple

import numpy as np

from dcl.data.shapes import Draws

SIZE = (40, 20)
GRID = 3  # colours are painted at GRID x GRID points of a pixel
CAMERAS, SHOTS = 4, 5  # cameras that see a person, pictures that each takes
PEOPLE = {"train": 40, "test": 20}
SKIN = [(242, 200, 170), (196, 140, 100), (120, 80, 56)]
HAIR = [(40, 30, 28), (110, 70, 40), (220, 190, 110), (150, 150, 150)]
CLOTH = [
    (225, 60, 60),
    (240, 170, 50),
    (235, 225, 90),
    (70, 170, 80),
    (60, 190, 200),
    (60, 90, 210),
    (150, 70, 180),
    (235, 235, 235),
    (60, 60, 66),
    (150, 110, 80),
]
KINDS = [len(SKIN), len(HAIR), 2, len(CLOTH), 3, len(CLOTH), 3, 4]
"""How many values: skin, hair, its length, shirt, pattern, trousers, their cut, bag."""
CAST = np.array([[256, 256, 256], [276, 250, 227], [229, 250, 278], [238, 267, 236]])  # in 256ths
GROUND = np.array([[144, 144, 144], [158, 146, 132], [126, 138, 134], [138, 152, 162]])


class People(NamedTuple):
    """Images uint8 (N,3,40,20), the person and the camera of each, int64 (N,), and roles (N,)."""

    images: np.ndarray
    person: np.ndarray
    camera: np.ndarray
    query: np.ndarray  # bool: the first picture of a person by a camera


def people(split: str = "train", seed: int = 0) -> People:
    """Draw one split: 40 or 20 people x 4 cameras x 5 pictures; no person is in both splits.

    Raises ValueError for another split.
    """
    if split not in PEOPLE:
        raise ValueError(f"split must be one of {', '.join(PEOPLE)}; got {split!r}")
    draw = Draws(seed + 1)
    looks = np.stack([draw(0, k - 1, 400) for k in KINDS], 1)
    looks = looks[looks[:, 3] != looks[:, 5]]  # shirt and trousers differ
    _, first = np.unique(looks[:, [3, 5]], axis=0, return_index=True)  # no two in the same clothes
    looks = looks[np.sort(first)]
    build = draw(-8, 8, len(looks))
    start = 0 if split == "train" else PEOPLE["train"]
    each, n = CAMERAS * SHOTS, PEOPLE[split] * CAMERAS * SHOTS
    draw = Draws(1000 * (seed + 1) + start)
    person, place = np.arange(n) // each, np.arange(n) % each
    camera, shot = place // SHOTS, place % SHOTS
    poses = draw(-64, 64, n, 8)
    noise = draw(-7, 7, n, *SIZE, 3) + draw(-7, 7, n, *SIZE, 3)
    images = np.empty((n, *SIZE, 3), np.uint8)
    for k in range(n):
        who = start + person[k]
        clean = picture(looks[who], int(build[who]), int(camera[k]), poses[k])
        light = 256 + int(poses[k, 7]) // 2
        images[k] = np.clip(clean * CAST[camera[k]] * light // 2**16 + noise[k], 0, 255)
    order = np.argsort(draw(0, 2**31 - 1, n), kind="stable")
    return People(
        images[order].transpose(0, 3, 1, 2).copy(), person[order], camera[order], shot[order] == 0
    )


def picture(look: np.ndarray, build: int, camera: int, pose: np.ndarray) -> np.ndarray:
    """A person in front of a camera's background, before cast and light: int64 (40,20,3).

    look: as `KINDS`; build: -8 slim to 8 broad; pose (8,) in -64..64: shift right and down, size,
    legs, arms, lean, side, light.
    """
    height, width = SIZE
    lines = 2 * (np.arange(height * GRID) + 0.5) / (height * GRID) - 1
    columns = (2 * (np.arange(width * GRID) + 0.5) / (width * GRID) - 1) * 0.42
    zoom = 0.98 + pose[2] / 640
    side = 1 if pose[6] >= 0 else -1
    v = (lines[:, None] - pose[1] / 640) / zoom + 0 * columns[None, :]
    u = side * (columns[None, :] - pose[0] / 640) / zoom - pose[5] / 640 * (1 - v)
    colours = np.empty((*v.shape, 3), np.int64)
    colours[:] = GROUND[camera]
    wall = [lines[:, None] < -0.2, columns[None, :] * 8 % 1 < 0.3, lines[:, None] > 0.5,
            (columns[None, :] + lines[:, None]) * 3 % 1 < 0.4][camera]  # fmt: skip
    colours[np.broadcast_to(wall, v.shape)] = GROUND[camera] * 7 // 8
    for mask, colour in layers(u, v, look, build, pose):
        colours[mask] = colour
    points = colours.reshape(height, GRID, width, GRID, 3).sum((1, 3))
    return points // GRID**2


def layers(u: np.ndarray, v: np.ndarray, look: np.ndarray, build: int, pose: np.ndarray) -> list:
    """What is painted, from back to front: (mask, colour) of points u right, v down."""
    skin, hair = SKIN[look[0]], HAIR[look[1]]
    shirt, trousers = CLOTH[look[3]], CLOTH[look[5]]
    second = CLOTH[(look[3] + 4) % len(CLOTH)]  # of the pattern, and of the bag
    wide = 0.2 + build / 256
    step, swing = 0.12 + pose[3] / 900, pose[4] / 700
    below = v - 0.08
    apart = abs(abs(u) - 0.09 - step * np.maximum(below, 0))
    legs = (apart < 0.085) & (v > 0.05) & (v < 0.92)
    torso = (abs(u) < wide - 0.05 * (v + 0.58)) & (v > -0.58) & (v < 0.12)
    arm = abs(abs(u + swing * (v + 0.5)) - wide - 0.06 - 0.04 * (v + 0.5)) < 0.055
    arms = arm & (v > -0.55) & (v < 0.1)
    around = (u * u) / 0.0196 + (v + 0.75) * (v + 0.75) / 0.0256
    head = around < 0.85
    locks = (around < 1.25) & ((v < -0.8) | ((look[2] == 1) & (abs(u) > 0.08)))
    long = (look[2] == 1) & (abs(abs(u) - 0.12) < 0.05) & (v > -0.8) & (v < -0.45)
    cut = [legs, legs & (v < 0.45), (abs(u) < 0.17 + 0.25 * below) & (v > 0.05) & (v < 0.5)]
    stripes = torso & ((v + 1) * 7 % 1 < 0.4)
    badge = torso & (abs(u) < 0.1) & (abs(v + 0.3) < 0.12)
    bag = (abs(u - wide - 0.1) < 0.09) & (abs(v - 0.08) < 0.13)
    none = np.zeros_like(legs)
    return [
        (legs, skin),
        (legs & (v > 0.84), (50, 45, 45)),
        (cut[look[6]], trousers),
        (torso, shirt),
        ([none, stripes, badge][look[4]], second),
        (arms, skin if look[6] == 1 else shirt),
        (head, skin),
        (locks | long, hair),
        (bag if look[7] == 1 else none, second),
        (bag if look[7] == 2 else none, (90, 60, 40)),
    ]
