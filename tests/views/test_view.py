"""Views against torchvision and kornia, by hand, by loop, and by what they are to distribute."""

import colorsys
import json
from dataclasses import asdict

import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as tv
from torch import Tensor

from dcl import views
from dcl.train import seeded
from dcl.views import View, color, geometry, randaugment
from dcl.views.ricap import ricap, ricap_draw

kornia = pytest.importorskip("kornia")

RECIPES = {
    "digit": views.DIGIT_VIEW,
    "photo": views.PHOTO_VIEW,
    "swav": views.SWAV_VIEW,
    "strong": views.SCAN_STRONG,
    "crop-flip": views.CROP_FLIP,
    "deepcluster": views.DEEPCLUSTER_VIEW,
    "small crop": View(size=12, scale=(0.05, 0.14), flip=0.5),
    "all": View(
        size=20, scale=(0.3, 0.9), pad=2, rotate=20, translate=0.1, shear=5, zoom=(0.8, 1.2),
        flip=0.5, fill="reflection", jitter=(0.5, 0.5, 0.5, 0.5), gray=0.3, negative=0.5, blur=0.5,
        randaugment=3, erase=8,
    ),
}  # fmt: skip
recipes = pytest.mark.parametrize("view", RECIPES.values(), ids=list(RECIPES))


def images(batch: int = 6, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Smooth random images with values k / 255, as those of a data set are."""
    with seeded(0):
        x = torch.rand(batch, channels, height // 4, width // 4)
        x = torch.nn.functional.interpolate(x, (height, width), mode="bicubic").clamp(0, 1)
        return ((x + 0.1 * torch.rand_like(x)).clamp(0, 1) * 255).round() / 255


def ramps(batch: int, side: int = 32) -> Tensor:
    """Images that say where they were sampled: red = x, green = y, from 0 to 1, edge to edge."""
    place = (torch.arange(side) + 0.5) / side
    x = torch.zeros(batch, 3, side, side)
    x[:, 0], x[:, 1] = place, place[:, None]
    return x


# ------------------------------------------------------------------ the whole view


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(32, 32), (16, 16), (24, 20)])
@recipes
def test_shape_range_dtype_and_untouched_input(view, channels, shape):
    x = images(9, channels, *shape)
    before = x.clone()
    with seeded(1):
        y = view(x)
    assert torch.equal(x, before), "the view changed its input"
    assert y.shape == (9, channels, *((view.size,) * 2 if view.size else shape))
    assert y.dtype == torch.float32
    assert torch.isfinite(y).all() and y.min() >= 0 and y.max() <= 1


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
    with seeded(3):
        assert torch.equal(view(x), first)
    with seeded(4):
        assert not torch.equal(view(x), first)
    different = {tuple(y.flatten().tolist()) for y in first}
    assert len(different) >= (64 if view != views.CROP_FLIP else 40)


@recipes
def test_autocast_changes_nothing(view):
    x = images()
    with seeded(5):
        plain = view(x)
    with seeded(5), torch.autocast("cpu", dtype=torch.bfloat16):
        y = view(x)
    assert y.dtype == torch.float32 and torch.equal(y, plain)


def test_half_in_half_out():
    y = views.PHOTO_VIEW(images().bfloat16())
    assert y.dtype == torch.bfloat16 and y.max() <= 1


def test_one_image_of_a_batch_does_not_leak_into_another():
    x, other = images(40), images(40)
    other[7] = 1 - other[7]
    view = View(scale=(0.2, 1), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), gray=0.2, blur=0.5)
    with seeded(0):
        a = view(x)
    with seeded(0):
        b = view(other)
    same = torch.tensor([torch.equal(p, q) for p, q in zip(a, b, strict=True)])
    assert same.tolist() == [k != 7 for k in range(40)]


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
        (ValueError, "blur_sigma", (0, 1)),
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


@pytest.mark.parametrize("size", [(24, 32), (24, 24)])
@pytest.mark.parametrize(
    ("angle", "shear", "zoom", "shift"),
    [(20, 0, 1, (0, 0)), (0, 12, 1, (0, 0)), (0, 0, 1.3, (0, 0)), (0, 0, 1, (3, -2)),
     (-33, 15, 0.8, (2, 5))],
)  # fmt: skip
def test_affine_is_torchvisions(size, angle, shear, zoom, shift):
    x = images(3, 3, *size)
    moved = torch.tensor([shift[0] / size[1], shift[1] / size[0]]).expand(3, 2)
    values = (torch.full((3,), float(v)) for v in (angle, shear, zoom))
    y = geometry.warp(x, geometry.affine(*values, moved, size[1] / size[0]), size)
    bilinear = T.InterpolationMode.BILINEAR
    expected = tv.affine(x, angle, list(shift), zoom, [shear, 0], bilinear)
    # torchvision blends the mask of what lies outside by itself: compare where both are inside
    inside = tv.affine(torch.ones_like(x), angle, list(shift), zoom, [shear, 0], bilinear) == 1
    assert inside.float().mean() > 0.4
    torch.testing.assert_close(y[inside], expected[inside], rtol=0, atol=2e-5)


def test_rotation_is_kornias():
    x = images(4)
    angles = torch.tensor([0.0, 10.0, -25.0, 90.0])
    zero, one = torch.zeros(4), torch.ones(4)
    y = geometry.warp(x, geometry.affine(angles, zero, one, torch.zeros(4, 2)), (32, 32))
    expected = kornia.geometry.rotate(x, -angles, align_corners=True)  # about pixel (15.5, 15.5)
    torch.testing.assert_close(y[:, :, 8:24, 8:24], expected[:, :, 8:24, 8:24], rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [8, 12, 20, 32, 50])
def test_resizing_is_torchvisions_antialiased(size):
    x = images(3, 3, 32, 40)
    with seeded(0):
        y = View(size=size)(x)
    torch.testing.assert_close(y, tv.resize(x, [size, size], antialias=True), rtol=0, atol=2e-5)


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


@pytest.mark.parametrize("turned", [0, 10])
def test_shrinking_does_not_alias(turned):
    rows = torch.arange(32)
    board = ((rows[:, None] + rows) % 2).float().expand(4, 3, 32, 32).contiguous()
    y = View(size=8, rotate=turned)(board)[:, :, 2:-2, 2:-2]
    assert (y - 0.5).abs().max() < 0.1


def test_pad_crop_together_with_other_geometry():
    """The shift that is exact by itself is the same one inside an affine map."""
    still = View(pad=4, zoom=(1.0, 1.0 + 1e-7), fill="border")
    with seeded(0):
        y = still(ramps(3000))
    pixels = (y - ramps(3000))[:, :2, 16, 16] * 32
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)
    for axis in (0, 1):
        assert sorted(set(pixels[:, axis].round().int().tolist())) == list(range(-4, 5))
    assert torch.corrcoef(pixels.T)[0, 1].abs() < 0.1


# ------------------------------------------------------------------ colour

ADJUST = [
    (color.brightness, tv.adjust_brightness, (0.0, 0.3, 1.0, 1.7)),
    (color.contrast, tv.adjust_contrast, (0.0, 0.3, 1.0, 1.7)),
    (color.saturation, tv.adjust_saturation, (0.0, 0.3, 1.0, 1.7)),
    (color.hue, tv.adjust_hue, (-0.5, -0.2, 0.0, 0.05, 0.5)),
    (randaugment.sharpness, tv.adjust_sharpness, (0.0, 0.3, 1.0, 1.7)),
]


@pytest.mark.parametrize(("ours", "theirs", "factors"), ADJUST, ids=[f[1].__name__ for f in ADJUST])
def test_colour_operations_are_torchvisions(ours, theirs, factors):
    x = images(len(factors))
    y = ours(x, torch.tensor(factors))
    expected = torch.stack([theirs(image, f) for image, f in zip(x, factors, strict=True)])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("ours", "theirs", "factors"), ADJUST[:3] + ADJUST[4:])
def test_neutral_factor_is_exact(ours, theirs, factors):
    x = images()
    assert torch.equal(ours(x, torch.ones(6)), x)


@pytest.mark.parametrize("turn", [-0.5, -0.31, 0.0, 1 / 3, 0.47])
def test_hue_by_hand(turn):
    levels = [0.0, 0.25, 0.5, 1.0]
    colours = [(r, g, b) for r in levels for g in levels for b in levels]
    x = torch.tensor(colours).view(-1, 3, 1, 1)
    y = color.hue(x, torch.full((len(x),), turn))
    for before, after in zip(colours, y.flatten(1).tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((h + turn) % 1, s, v), abs=1e-5)


def test_hue_is_kornias():
    x, turns = images(), torch.tensor([-0.4, -0.1, 0.0, 0.1, 0.2, 0.5])
    expected = kornia.enhance.adjust_hue(x, turns * 2 * torch.pi)
    torch.testing.assert_close(color.hue(x, turns), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigmas", [(0.1, 0.5, 1.0, 2.0)])
def test_blur_is_torchvisions_and_kornias(sigmas):
    x = images(4, 3, 32, 28)
    y = color.blur(x, torch.tensor(sigmas), 6)
    each = [tv.gaussian_blur(image, [13, 13], [s, s]) for image, s in zip(x, sigmas, strict=True)]
    torch.testing.assert_close(y, torch.stack(each), rtol=0, atol=1e-5)
    pairs = torch.tensor(sigmas)[:, None].expand(4, 2)
    expected = kornia.filters.gaussian_blur2d(x, 13, pairs)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


def test_blur_on_images_smaller_than_the_kernel():
    y = View(blur=1.0)(images(3, 1, 4, 4))
    assert torch.isfinite(y).all()


def test_digit_view_keeps_digits_upright_and_unmirrored():
    """A 6 turned round is a 9, and a mirrored 2 is no digit."""
    view = views.DIGIT_VIEW
    assert view.flip == 0 and view.rotate <= 20 and view.negative == 0
    assert view.translate <= 0.15 and 0.75 <= view.zoom[0] <= view.zoom[1] <= 1.3


# ------------------------------------------------------------------ RandAugment and Cutout


def test_erase_fills_with_the_mean_colour_of_the_batch():
    x = images(50)
    with seeded(0):
        y = View(erase=16)(x)
    changed = (y != x).any(1)
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
        assert draw.weights.sum() == pytest.approx(1)
        assert draw.perms.dtype == torch.int64
        assert torch.equal(draw.perms.sort(1).values, torch.arange(batch).expand(4, batch))


def test_ricap_patches_are_crops_and_a_second_call_moves_them():
    x = ramps(40, 16)
    x[:, 2] = torch.arange(40).view(40, 1, 1) / 40
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
def test_gpu_computes_what_the_cpu_does():
    x, factors = images(), torch.tensor([0.2, 0.5, 0.9, 1.0, 1.3, 1.9])
    operations = [color.brightness, color.contrast, color.saturation, randaugment.sharpness]
    for operation in operations + [lambda x, f: color.hue(x, f / 4)]:
        torch.testing.assert_close(
            operation(x.cuda(), factors.cuda()).cpu(), operation(x, factors), rtol=0, atol=1e-5
        )
