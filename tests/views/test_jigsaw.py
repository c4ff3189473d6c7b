"""Boxes, patches and montages by hand, and against a slow loop."""

import pytest
import torch

from dcl.train import seeded
from dcl.views import View
from dcl.views.jigsaw import crop_boxes, cut, montage


@pytest.mark.parametrize(
    "size, grid, overlap, boxes",
    [
        ((10, 10), 2, 0.3, [(0, 0, 8, 8), (0, 2, 8, 8), (2, 0, 8, 8), (2, 2, 8, 8)]),
        ((6, 8), 2, 0, [(0, 0, 3, 4), (0, 4, 3, 4), (3, 0, 3, 4), (3, 4, 3, 4)]),
        ((4, 4), 1, 0, [(0, 0, 4, 4)]),
    ],
)
def test_boxes_by_hand(size, grid, overlap, boxes):
    assert crop_boxes(*size, grid, overlap) == boxes


@pytest.mark.parametrize("grid, overlap", [(2, 0.3), (3, 0.1), (3, 0.0), (4, 0.75), (1, 0.0)])
@pytest.mark.parametrize("size", [(32, 32), (17, 23)])
def test_boxes_cover_the_image_row_by_row(size, grid, overlap):
    boxes = crop_boxes(*size, grid, overlap)
    assert len(boxes) == grid**2 and boxes == sorted(boxes)
    covered = torch.zeros(size)
    for top, left, height, width in boxes:
        assert abs(height - size[0] * (1 / grid + overlap)) <= 0.5
        assert abs(width - size[1] * (1 / grid + overlap)) <= 0.5
        assert top + height <= size[0] and left + width <= size[1]
        covered[top : top + height, left : left + width] += 1
    assert covered[0, 0] and covered[-1, -1]
    if size == (32, 32) and grid != 3:
        assert covered.all()
    # the overlap of neighbours at n = 2: 32 px, patches of 26, 20 columns in common
    assert grid != 2 or size != (32, 32) or (covered[0] == 2).sum() == 20


def test_patches_are_views_of_the_boxes_position_major():
    with seeded(0):
        x = torch.rand(3, 3, 10, 10)
    patches = cut(x, View(), 2, 0.3)
    assert patches.shape == (12, 3, 8, 8)
    for v, (top, left) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        for b in range(3):
            assert torch.equal(patches[v * 3 + b], x[b, :, top : top + 8, left : left + 8])
    assert cut(x, View(size=5)).shape == (12, 3, 5, 5)
    with seeded(0):  # each patch draws its own view
        drawn = cut(x[:1].expand(3, -1, -1, -1), View(rotate=30))
    assert len(drawn.flatten(1).unique(dim=0)) == 12


def test_montage_by_hand():
    patches = torch.arange(8.0).view(8, 1, 1, 1)  # of two images
    rows = montage(patches, torch.tensor([7, 1, 2, 3, 4, 5, 0, 6]))[:, 0]
    assert rows.tolist() == [[[7, 2], [4, 0]], [[1, 3], [5, 6]]]


@pytest.mark.parametrize("grid, batch", [(2, 5), (3, 2), (1, 3)])
def test_montage_is_the_slow_loop(grid, batch):
    with seeded(1):
        patches = torch.rand(grid**2 * batch, 3, 4, 6)
        perm = torch.randperm(len(patches))
    expected = torch.full((batch, 3, grid * 4, grid * 6), -1.0)
    for k in range(len(patches)):
        v, j = divmod(k, batch)
        row, column = divmod(v, grid)
        for y in range(4):
            for x in range(6):
                expected[j, :, row * 4 + y, column * 6 + x] = patches[perm[k], :, y, x]
    assert torch.equal(montage(patches, perm, grid), expected)


def test_without_overlap_and_without_shuffling_the_images_come_back():
    with seeded(2):
        x = torch.rand(3, 1, 12, 12)
    for grid in (1, 2, 3):
        patches = cut(x, View(), grid, 0)
        assert torch.equal(montage(patches, torch.arange(len(patches)), grid), x)


@pytest.mark.parametrize("grid, overlap", [(0, 0.0), (2, -0.1), (2, 0.6), (3, 0.7)])
def test_what_cannot_be_cut_is_refused(grid, overlap):
    with pytest.raises(ValueError, match=f"grid must be .* got {grid} and {overlap}"):
        crop_boxes(8, 8, grid, overlap)
    with pytest.raises(ValueError, match="images must be larger than 9 patches; got 4 x 4"):
        crop_boxes(4, 4, 9, 0)
