"""The drawn people: their bytes, who is seen where, and that a camera hides a person."""

import hashlib

import numpy as np
import pytest
import torch

from dcl.data import load
from dcl.data.people import CLOTH, HAIR, SKIN, layers, people, picture
from dcl.measure.metrics import nmi
from dcl.measure.retrieval import retrieval


@pytest.fixture(scope="module")
def drawn():
    return {split: people(split) for split in ("train", "test")}


def test_bytes_are_those_stated_in_the_data_readme(drawn):
    digests = [hashlib.sha256(p.images.tobytes()).hexdigest()[:16] for p in drawn.values()]
    assert digests == ["494b4f08bc2ba1f6", "d3a1390eca4c08b0"]
    assert [load(f"people:{s}").checksum for s in drawn] == ["c8e5ced2e7090ad7", "c5d72121fd2139a7"]
    assert load("people", "train+test").images.shape == (1200, 3, 40, 20)


def test_every_camera_sees_every_person_as_often(drawn):
    for split, n in (("train", 40), ("test", 20)):
        found = drawn[split]
        assert found.images.shape == (20 * n, 3, 40, 20) and found.images.dtype == np.uint8
        pairs = np.bincount(found.person * 4 + found.camera)
        assert (pairs == 5).all() and len(pairs) == 4 * n
        asked = np.bincount((found.person * 4 + found.camera)[found.query])
        assert (asked == 1).all()  # a query for each person and camera
        assert nmi(found.person[:200], found.camera[:200]) < 0.5  # shuffled


def test_seed_changes_the_set_and_nothing_else_does(drawn):
    np.random.seed(3)
    again, other = people("test", 0), people("test", 1)
    assert all((a == b).all() for a, b in zip(drawn["test"], again, strict=True))
    assert (drawn["test"].images != other.images).mean() > 0.9


def test_layers_by_hand():
    """Skin 0, hair 1, long, shirt 2 with stripes, trousers 5, long arms, a bag at the side."""
    look, pose = np.array([0, 1, 1, 2, 1, 5, 0, 1]), np.zeros(8, np.int64)

    def colour(u, v):
        found = None
        for mask, value in layers(np.array([[u]]), np.array([[v]]), look, 0, pose):
            found = value if mask[0, 0] else found
        return found

    assert colour(0, -0.72) == SKIN[0] and colour(0, -0.88) == HAIR[1]
    assert colour(0, -0.5) in (CLOTH[2], CLOTH[6]) and colour(0.27, -0.3) == CLOTH[2]  # sleeve
    assert colour(0.12, 0.4) == CLOTH[5] == colour(-0.12, 0.4) and colour(0, 0.6) is None
    assert colour(0.3, 0.08) == CLOTH[6] and colour(-0.3, 0.16) is None  # the bag, on one side
    assert colour(0.5, 0) is None and colour(0, -0.98) is None and colour(0.1, 0.95) is None


def test_camera_and_pose_change_the_picture_and_the_person_stays():
    look, pose = np.array([0, 1, 1, 2, 1, 5, 0, 1]), np.zeros(8, np.int64)
    pictures = [picture(look, 0, camera, pose) for camera in range(4)]
    assert all((a != b).any() for a in pictures for b in pictures if a is not b)
    assert all((a[12:18, 9:11] == pictures[0][12:18, 9:11]).all() for a in pictures)  # the shirt
    moved = picture(look, 0, 0, np.array([40, 0, 0, 0, 0, 0, 0, 0]))
    assert (moved != pictures[0]).any()
    mirrored = picture(look, 0, 0, np.array([0, 0, 0, 0, 0, 0, -1, 0]))
    assert (mirrored[:, ::-1] == pictures[0])[:, 4:16].mean() > 0.9


def test_no_two_people_wear_the_same_and_none_is_in_both_splits(drawn):
    """By the mean picture of each in camera 0."""
    means = [
        p.images[(p.person == who) & (p.camera == 0)].mean((0, 2, 3))
        for p in drawn.values()
        for who in range(p.person.max() + 1)
    ]
    apart = np.abs(np.stack(means)[:, None] - np.stack(means)).sum(2) + 99 * np.eye(60)
    assert apart.min() > 0.5


def test_pixels_rank_by_camera(drawn):
    p = drawn["test"]
    pixels = torch.from_numpy(p.images).float().flatten(1)
    pixels = pixels - pixels.mean(0)
    near = torch.nn.functional.normalize(pixels, dim=1)
    cosine = near @ near.T - 2 * torch.eye(len(near))
    assert (p.camera[cosine.argmax(1)] == p.camera).mean() > 0.45  # one in four by chance
    assert 0.4 < retrieval(pixels, p.person, p.camera, p.query).map < 0.6  # chance: about .05


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, test; got 'all'"):
        people("all")
