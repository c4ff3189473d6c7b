"""A view's operations against torchvision, RICAP by loop, and what a call promises."""

import json
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as tv
from torch import Tensor

from dcl import views
from dcl.train import seeded
from dcl.views import View, color, geometry, randaugment
from dcl.views.ricap import ricap, ricap_draw

RECIPES = {
    "digit": views.DIGIT_VIEW,
    "photo": views.PHOTO_VIEW,
    "swav": views.SWAV_VIEW,
    "strong": views.SCAN_STRONG,
    "crop-flip": views.CROP_FLIP,
    "deepcluster": views.DEEPCLUSTER_VIEW,
    "barlow": View(rotate=5, jitter=(0.4, 0.4, 0.2, 0.1), gray=0.2, blur=0.5, solarize=0.5),
    "small crop": View(size=12, scale=(0.05, 0.14), flip=0.5),
    "all": View(
        size=20, scale=(0.3, 0.9), pad=2, rotate=20, translate=0.1, shear=5, zoom=(0.8, 1.2),
        flip=0.5, fill="reflection", jitter=(0.5, 0.5, 0.5, 0.5), gray=0.3, negative=0.5, blur=0.5,
        randaugment=3, erase=8,
    ),
}  # fmt: skip
recipes = pytest.mark.parametrize("view", RECIPES.values(), ids=list(RECIPES))
channels = pytest.mark.parametrize("channels", [1, 3])


def images(batch: int = 6, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Smooth random images with values k / 255, as those of a data set are."""
    with seeded(0):
        x = torch.rand(batch, channels, height // 4, width // 4)
        x = torch.nn.functional.interpolate(x, (height, width), mode="bicubic").clamp(0, 1)
        return ((x + 0.1 * torch.rand_like(x)).clamp(0, 1) * 255).round() / 255


# ------------------------------------------------------------------ the whole view


@channels
@pytest.mark.parametrize("shape", [(32, 32), (4, 4), (24, 20)])
@recipes
def test_shape_range_dtype_and_untouched_input(view, channels, shape):
    x = images(9, channels, *shape)
    before = x.clone()
    y = view(x)
    assert torch.equal(x, before), "the view changed its input"
    assert y.shape == (9, channels, *((view.size,) * 2 if view.size else shape))
    assert torch.isfinite(y).all() and y.min() >= 0 and y.max() <= 1
    assert y.dtype == torch.float32 and view(x.bfloat16()).dtype == torch.bfloat16


def test_all_off_returns_the_images():
    x = images()
    assert torch.equal(View()(x), x)
    assert torch.equal(View(jitter_prob=1.0, size=32)(x), x)
    assert torch.equal(View()(x.half()), x.half())


@recipes
def test_seed_decides_and_images_draw_independently(view):
    x = images(1).expand(64, -1, -1, -1).contiguous()
    with seeded(3):
        first = view(x)
    with seeded(3), torch.autocast("cpu", dtype=torch.bfloat16):  # which changes nothing
        assert torch.equal(view(x), first)
    with seeded(4):
        assert not torch.equal(view(x), first)
    different = {tuple(y.flatten().tolist()) for y in first}
    assert len(different) >= (64 if view != views.CROP_FLIP else 40)


@channels
@recipes
def test_a_batch_is_what_its_images_give_one_by_one(view, channels):
    """On a CPU it is computed in blocks, of 32 images here."""
    x, view = images(40, channels), replace(view, randaugment=0, erase=0)
    with seeded(5):
        y = view(x)
    with seeded(5):
        steps = view._geometry(x) + view._colours(x)
    for k, one in enumerate(x.split(1)):
        for operation, values in steps:
            one = operation(one, *(v[k : k + 1] for v in values))
        torch.testing.assert_close(y[k : k + 1], one.clamp(0, 1), rtol=0, atol=1e-6)


@recipes
def test_settings_survive_json(view):
    assert View(**json.loads(json.dumps(asdict(view)))) == view


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (ValueError, "size", 0), (TypeError, "size", 3.5), (TypeError, "scale", 0.5),
        (ValueError, "scale", (0.5, 2.0)), (ValueError, "scale", (0.0, 1.0)),
        (ValueError, "ratio", (2.0, 1.0)), (ValueError, "pad", -1), (TypeError, "pad", 1.5),
        (ValueError, "rotate", -3), (ValueError, "translate", 2), (ValueError, "shear", 90),
        (ValueError, "zoom", (0, 1)), (ValueError, "flip", 1.5), (TypeError, "flip", "often"),
        (ValueError, "fill", "white"), (TypeError, "jitter", (0.4, 0.4)),
        (ValueError, "jitter", (0.0, 0.0, 0.0, 0.6)), (ValueError, "jitter_prob", 2),
        (ValueError, "gray", -0.1), (ValueError, "negative", 2), (ValueError, "blur", 2),
        (ValueError, "blur_sigma", (0, 1)), (ValueError, "solarize", 1.1),
        (ValueError, "randaugment", -1), (ValueError, "erase", -1),
    ],
)  # fmt: skip
def test_bad_settings_are_named(error, name, value):
    with pytest.raises(error, match=rf"View\.{name} must be .*got "):
        View(**{name: value})


@pytest.mark.parametrize(
    ("error", "message", "x"),
    [
        (TypeError, "torch.uint8", torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        (TypeError, "list", [[0.0]]),
        (ValueError, r"\(3, 8, 8\)", torch.zeros(3, 8, 8)),
        (ValueError, r"\(2, 4, 8, 8\)", torch.zeros(2, 4, 8, 8)),
        (ValueError, r"\(0, 3, 8, 8\)", torch.zeros(0, 3, 8, 8)),
        (ValueError, "to 255", torch.full((2, 3, 8, 8), 255.0)),
        (ValueError, "nan", torch.full((2, 3, 8, 8), float("nan"))),
    ],
)
def test_bad_images_are_described(error, message, x):
    with pytest.raises(error, match=f"^x must .*{message}"):
        View(flip=0.5)(x)


# ------------------------------------------------------------------ geometry


@pytest.mark.parametrize("fill", ["zeros", "border", "reflection"])
def test_whole_pixel_shifts_and_flips_are_exact(fill):
    x = images(32, 3, 10, 12)
    mode = {"zeros": "constant", "border": "edge", "reflection": "symmetric"}[fill]
    shift = torch.stack([torch.arange(32) % 9 - 4, torch.arange(32) // 4 - 4], 1)
    flip = torch.arange(32) % 3 == 0
    y = geometry.shifted(x, shift, flip, fill)
    for k in range(32):
        columns, rows = shift[k].tolist()
        wide = tv.pad(x[k], [4], padding_mode=mode)
        expected = tv.crop(wide, 4 + rows, 4 + columns, 10, 12)
        assert torch.equal(y[k], tv.hflip(expected) if flip[k] else expected)


@pytest.mark.parametrize(
    ("angle", "shear", "zoom", "shift"),
    [(20, 0, 1, (0, 0)), (0, 12, 1, (0, 0)), (0, 0, 1.3, (0, 0)), (0, 0, 1, (3, -2)),
     (-33, 15, 0.8, (2, 5))],
)  # fmt: skip
def test_affine_is_torchvisions(angle, shear, zoom, shift):
    x = images(3, 3, 24, 32)
    moved = torch.tensor([shift[0] / 32, shift[1] / 24]).expand(3, 2)
    values = (torch.full((3,), float(v)) for v in (angle, shear, zoom))
    y = geometry.warp(x, geometry.affine(*values, moved, 32 / 24), (24, 32))
    bilinear = T.InterpolationMode.BILINEAR
    expected = tv.affine(x, angle, list(shift), zoom, [shear, 0], bilinear)
    # torchvision blends the mask of what lies outside by itself: compare where both are inside
    inside = tv.affine(torch.ones_like(x), angle, list(shift), zoom, [shear, 0], bilinear) == 1
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(y[inside], expected[inside], rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [8, 12, 20, 32, 50])
def test_resizing_is_torchvisions_antialiased(size):
    x = images(3, 3, 32, 40)
    expected = tv.resize(x, [size, size], antialias=True)
    torch.testing.assert_close(View(size=size)(x), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [16, 48])
def test_crop_is_torchvisions(size):
    x = images(2)
    top, left, height, width = 4, 6, 24, 20
    across = [width / 32, 0, (2 * left + width) / 32 - 1]
    down = [0, height / 32, (2 * top + height) / 32 - 1]
    theta = torch.tensor([across, down]).expand(2, 2, 3)
    y = geometry.sample(x, theta, (size, size), "border", turned=False)
    expected = tv.resized_crop(x, top, left, height, width, [size, size], antialias=True)
    inner = slice(2, -2)  # at the rim torchvision repeats the crop's border, ours looks beyond it
    torch.testing.assert_close(y[..., inner, inner], expected[..., inner, inner], rtol=0, atol=2e-5)
    mirrored = theta.clone()
    mirrored[:, 0, 0] *= -1
    z = geometry.sample(x, mirrored, (size, size), "border", turned=False)
    torch.testing.assert_close(z, y.flip(3), rtol=0, atol=2e-5)
    assert View(scale=(0.1, 0.3))(torch.ones(500, 1, 32, 32)).min() > 0.999  # no black rim


@pytest.mark.parametrize("size", [16, 32])
def test_what_lies_beside_the_image(size):
    x = images(2)
    beside = torch.tensor([[1.0, 0, 2], [0, 1, 0]]).expand(2, 2, 3)  # one width to the right
    y = {
        fill: geometry.sample(x, beside, (size, size), fill, turned=False)
        for fill in geometry.FILLS
    }
    assert not y["zeros"].any()
    mirrored = tv.resize(x.flip(3), [size, size], antialias=True)
    torch.testing.assert_close(y["reflection"], mirrored, rtol=0, atol=2e-5)
    assert (y["border"] - y["border"][..., :1]).abs().max() < 1e-6


def test_shrinking_what_is_turned_does_not_alias():
    rows = torch.arange(32)
    board = ((rows[:, None] + rows) % 2).float().expand(4, 3, 32, 32).contiguous()
    y = View(size=8, rotate=10)(board)[:, :, 2:-2, 2:-2]
    assert (y - 0.5).abs().max() < 0.1


# ------------------------------------------------------------------ one operation


def in_bytes(operation):
    """An operation of torchvision that works on bytes."""
    return lambda x, *value: operation((x * 255).round().byte(), *map(int, value)) / 255


FACTORS = (0.0, 0.3, 1.0, 1.7)
COLOURS = [  # ours on a batch with a value for each image, torchvision's on one image, values
    (color.brightness, tv.adjust_brightness, FACTORS),
    (color.contrast, tv.adjust_contrast, FACTORS),
    (color.saturation, tv.adjust_saturation, FACTORS),
    (randaugment.sharpness, tv.adjust_sharpness, FACTORS),
    (color.hue, tv.adjust_hue, (-0.5, -0.31, -0.2, 0.0, 0.05, 1 / 3, 0.5)),
    (color.negative, lambda x, v: tv.invert(x) if v else x, (0.0, 1.0)),
    (partial(color.blur, radius=6), lambda x, v: tv.gaussian_blur(x, 13, v), (0.1, 0.5, 1.0, 2.0)),
    (randaugment.solarize, tv.solarize, (0.0, 128 / 255, 0.6, 1.0)),
    (randaugment.posterize, in_bytes(tv.posterize), (4, 5, 6, 7, 8)),
    (lambda x, v: randaugment.autocontrast(x), lambda x, v: tv.autocontrast(x), (0,)),
    (lambda x, v: randaugment.equalize(x), lambda x, v: in_bytes(tv.equalize)(x), (0,)),
]


@channels
@pytest.mark.parametrize(("ours", "theirs", "values"), COLOURS)
def test_operations_are_torchvisions(ours, theirs, values, channels):
    x = images(5, channels, 16, 20)
    x[1] = 128 / 255  # a flat image
    x[2] = (x[2] > 0.5).float()  # two levels, and eight colours
    x[3] = (x[3] * 0.3 * 255).round() / 255  # dark
    levels = torch.tensor([0, 64, 128, 255]) / 255
    x[4, :, :8, :8] = torch.cartesian_prod(*[levels] * 3).T.view(3, 8, 8)[:channels]
    y = ours(x.repeat_interleave(len(values), 0), torch.tensor(values).repeat(5))
    expected = torch.stack([theirs(image, value) for image in x for value in values])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
    if values is FACTORS:
        assert torch.equal(ours(x, torch.ones(5)), x)


def test_solarising_is_the_last_colour_and_takes_its_share_of_the_images():
    x = images(400)
    plain, view = View(blur=1.0), View(blur=1.0, solarize=0.3)
    with seeded(2):
        blurred = plain(x)
    with seeded(2):
        y = view(x)
    inverted = (y != blurred).flatten(1).any(1)
    assert inverted.float().mean() == pytest.approx(0.3, abs=0.07)
    wanted = torch.stack([tv.solarize(one, 128 / 255) for one in blurred[inverted]])
    assert torch.equal(y[inverted], wanted)


def test_erase_fills_with_the_mean_colour_of_the_batch():
    x = images(50)
    y = View(erase=16)(x)
    changed = (y != x).any(1)
    assert changed.any(2).any(1).sum() > 30
    fill = y.permute(0, 2, 3, 1)[changed]
    torch.testing.assert_close(fill, x.mean((0, 2, 3)).expand_as(fill), rtol=0, atol=1e-6)


# ------------------------------------------------------------------ RICAP


def test_ricap_by_loop():
    """Images of one value each show, in each mixed image, whose patch lies where."""
    batch, side = 7, 12
    x = torch.arange(batch).view(batch, 1, 1, 1).expand(batch, 1, side, side).float()
    for seed in range(30):
        with seeded(seed):
            draw = ricap_draw(batch, side)
            y = ricap(x, draw)
        h, w = draw.heights[0], draw.widths[0]
        corners = [(0, h, 0, w), (h, side, 0, w), (0, h, w, side), (h, side, w, side)]
        for k, (top, bottom, left, right) in enumerate(corners):
            assert draw.weights[k] == pytest.approx((bottom - top) * (right - left) / side**2)
            for i in range(batch):
                assert (y[i, 0, top:bottom, left:right] == draw.perms[k, i]).all()
            if 4 * (bottom - top) * (right - left) > side**2:
                assert torch.equal(draw.perms[k], torch.arange(batch))
        assert draw.weights.sum() == pytest.approx(1) and draw.perms.dtype == torch.int64
        assert torch.equal(draw.perms.sort(1).values, torch.arange(batch).expand(4, batch))


def test_ricap_patches_are_crops_and_a_second_call_moves_them():
    place = (torch.arange(16) + 0.5) / 16
    x = torch.zeros(40, 3, 16, 16)  # red and green: the position; blue: the image
    x[:, 0], x[:, 1], x[:, 2] = place, place[:, None], torch.arange(40).view(40, 1, 1) / 40
    with seeded(11):
        draw = ricap_draw(40, 16, beta=5.0)  # a corner near the middle
        a, b = ricap(x, draw), ricap(x, draw)
    assert torch.equal(a[:, 2], b[:, 2]), "the partners changed"
    assert not torch.equal(a[:, :2], b[:, :2]), "the positions did not"
    for y in (a, b):
        h, w = draw.heights[0], draw.widths[0]
        patch = y[3, 0, :h, :w]
        torch.testing.assert_close(patch[:, 1:] - patch[:, :-1], torch.full((h, w - 1), 1 / 16))


def test_ricap_weights_against_the_beta_law():
    with seeded(0):
        draws = [ricap_draw(2, 1000) for _ in range(3000)]
    share = torch.tensor([d.heights[0] / 1000 for d in draws])
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.std() == pytest.approx((0.25 / 1.6) ** 0.5, rel=0.04)  # Beta(.3,.3)
    foreign = torch.tensor([float(d.weights[d.weights <= 0.25].sum()) for d in draws])
    assert foreign.mean() == pytest.approx(0.12, abs=0.02)  # core facts: 12 % of the area


def test_ricap_says_what_is_wrong():
    with pytest.raises(ValueError, match="beta must be above 0; got 0"):
        ricap_draw(4, 8, beta=0)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        ricap_draw(0, 8)
    with pytest.raises(ValueError, match=r"x must be \(4,C,8,8\).*\(5, 3, 8, 8\)"):
        ricap(torch.zeros(5, 3, 8, 8), ricap_draw(4, 8))


# ------------------------------------------------------------------ GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@recipes
def test_gpu_runs_without_waiting(view):
    x = images(64).cuda()
    view(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = view(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert y.is_cuda and y.min() >= 0 and y.max() <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("ours", "theirs", "values"), COLOURS)
def test_gpu_computes_what_the_cpu_does(ours, theirs, values):
    x, values = images(len(values)), torch.tensor(values)
    y = ours(x.cuda(), values.cuda()).cpu()
    torch.testing.assert_close(y, ours(x, values), rtol=0, atol=1e-5)
