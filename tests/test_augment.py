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
from dcl.views import View, color, geometry, multi_crop, randaugment
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


def covered(view: View, batch: int = 4000, side: int = 32) -> tuple[Tensor, Tensor]:
    """Width and height (B,) of the part of the image that a view shows, flips negative."""
    y = view(ramps(batch, side))
    # two inner pixels: border pixels repeat
    low, high = side // 4, side - 1 - side // 4
    step = side / (high - low)
    return (y[:, 0, 9, high] - y[:, 0, 9, low]) * step, (y[:, 1, high, 9] - y[:, 1, low, 9]) * step


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


def test_blocks_do_not_matter():
    x = images(100, 3, 32, 32)  # 32 images fill a block
    steps = views.PHOTO_VIEW._geometry(x) + views.PHOTO_VIEW._colours(x)
    whole = x
    for operation, values in steps:
        whole = operation(whole, *values)
    torch.testing.assert_close(views.view._run(steps, x), whole, rtol=0, atol=1e-6)


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


def test_multi_crop_sizes():
    views = [View(scale=(0.14, 1))] * 2 + [View(size=12, scale=(0.05, 0.14))] * 3
    crops = multi_crop(images(), views)
    assert [c.shape[-1] for c in crops] == [32, 32, 12, 12, 12]
    assert not torch.equal(crops[0], crops[1])


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


def test_pad_crop_shifts_uniformly_by_whole_pixels():
    x = torch.zeros(6000, 1, 16, 16)
    x[:, :, 8, 8] = 1
    with seeded(0):
        y = View(pad=4)(x)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    counts = y.sum((0, 1))
    assert (counts > 0).sum() == 81 and counts.sum() == 6000
    assert counts[4:13, 4:13].min() > 6000 / 81 * 0.5


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


def test_both_samplers_agree_where_nothing_shrinks():
    x = images(16)
    with seeded(0):
        extent, centre = geometry.random_crop(x, (0.2, 1.0), (3 / 4, 4 / 3))
    theta = torch.cat([torch.diag_embed(extent), centre[:, :, None]], 2)
    a, b = (f(x, theta, (32, 32), "border") for f in (geometry.warp, geometry.resample))
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("turned", [0, 10])
def test_shrinking_does_not_alias(turned):
    rows = torch.arange(32)
    board = ((rows[:, None] + rows) % 2).float().expand(4, 3, 32, 32).contiguous()
    y = View(size=8, rotate=turned)(board)[:, :, 2:-2, 2:-2]
    assert (y - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.05, 0.14)])
def test_crops_are_distributed_as_torchvisions(scale):
    with seeded(0):
        width, height = covered(View(scale=scale))
        picture = torch.empty(3, 1000, 1000)  # large: torchvision rounds to pixels
        theirs = [
            T.RandomResizedCrop.get_params(picture, list(scale), [3 / 4, 4 / 3])[2:]
            for _ in range(4000)
        ]
    expected = torch.tensor(theirs) / 1000
    levels = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98])
    for ours, other in [
        (width * height, expected.prod(1)),
        ((width / height).log(), (expected[:, 1] / expected[:, 0]).log()),
    ]:
        torch.testing.assert_close(ours.quantile(levels), other.quantile(levels), rtol=0, atol=0.03)
    assert (width * height).max() <= scale[1] + 1e-3


def test_crop_positions_cover_the_image_and_stay_inside():
    with seeded(0):
        y = View(scale=(0.1, 0.3))(ramps(3000))
    assert y[:, :2].min() < 0.03 and y[:, :2].max() > 0.97
    centre = y[:, :2, 15:17, 15:17].mean((2, 3))
    torch.testing.assert_close(centre.mean(0), torch.tensor([0.5, 0.5]), rtol=0, atol=0.02)
    assert View(scale=(0.1, 0.3))(torch.ones(500, 1, 32, 32)).min() > 0.999  # no black rim


@pytest.mark.parametrize("view", [View(flip=0.3), View(flip=0.3, scale=(0.2, 1.0))])
def test_flip_share(view):
    with seeded(0):
        width, height = covered(view)
    assert (width < 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert (height > 0).all()


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


def test_zoom_rotation_and_shift_ranges():
    with seeded(0):
        width, _ = covered(View(zoom=(0.8, 1.25), fill="border"))
        y = View(rotate=30)(ramps(3000))
        moved = View(translate=0.2)(ramps(3000))[:, :2, 16, 16]
    assert 1 / width.max() == pytest.approx(0.8, abs=0.01)
    assert 1 / width.min() == pytest.approx(1.25, abs=0.01)
    slope = torch.atan2(y[:, 1, 16, 20] - y[:, 1, 16, 12], y[:, 0, 16, 20] - y[:, 0, 16, 12])
    degrees = torch.rad2deg(slope)
    assert degrees.abs().max() == pytest.approx(30, abs=0.5)
    assert degrees.std() == pytest.approx(30 / 3**0.5, rel=0.05)  # uniform
    assert (moved - 0.5156).abs().max() == pytest.approx(0.2, abs=0.01)
    assert torch.corrcoef(moved.T)[0, 1].abs() < 0.1


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


def test_a_third_of_the_circle_permutes_the_channels():
    x = images(3)
    torch.testing.assert_close(
        color.hue(x, torch.full((3,), 1 / 3)), x.roll(1, 1), atol=1e-5, rtol=0
    )


def test_hue_is_kornias():
    x, turns = images(), torch.tensor([-0.4, -0.1, 0.0, 0.1, 0.2, 0.5])
    expected = kornia.enhance.adjust_hue(x, turns * 2 * torch.pi)
    torch.testing.assert_close(color.hue(x, turns), expected, rtol=0, atol=1e-4)


def test_one_channel_has_no_hue_or_saturation():
    x = images(3, 1)
    assert torch.equal(color.hue(x, torch.full((3,), 0.3)), x)
    assert torch.equal(color.saturation(x, torch.zeros(3)), x)
    y = color.contrast(x, torch.tensor([0.5, 1.0, 1.5]))
    expected = torch.stack(
        [tv.adjust_contrast(i, f) for i, f in zip(x, (0.5, 1, 1.5), strict=True)]
    )
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


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


def test_jitter_probability_and_ranges():
    x = torch.full((6000, 3, 4, 4), 0.5)
    with seeded(0):
        y = View(jitter=(0.4, 0, 0, 0), jitter_prob=0.8)(x)[:, 0, 0, 0] / 0.5
    changed = y != 1
    assert changed.float().mean() == pytest.approx(0.8, abs=0.02)
    assert y.min() == pytest.approx(0.6, abs=0.005) and y.max() == pytest.approx(1.4, abs=0.005)
    assert y[changed].mean() == pytest.approx(1, abs=0.01)
    assert y[changed].std() == pytest.approx(0.8 / 12**0.5, rel=0.05)  # uniform


def test_hue_range():
    x = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).repeat(3000, 1, 1, 1)
    with seeded(0):
        y = View(jitter=(0, 0, 0, 0.1), jitter_prob=1.0)(x)[:, :, 0, 0]
    hues = torch.tensor([colorsys.rgb_to_hsv(*c)[0] for c in y.tolist()])
    hues = torch.where(hues > 0.5, hues - 1, hues)
    assert hues.min() == pytest.approx(-0.1, abs=0.005)
    assert hues.max() == pytest.approx(0.1, abs=0.005)
    assert hues.mean() == pytest.approx(0, abs=0.005)


def test_gray_and_blur_shares():
    x = images(1).repeat(3000, 1, 1, 1)
    with seeded(0):
        y = View(gray=0.2)(x)
        soft = View(blur=0.5)(x)
    grey = (y[:, 0] == y[:, 1]).all(2).all(1) & (y[:, 0] == y[:, 2]).all(2).all(1)
    assert grey.float().mean() == pytest.approx(0.2, abs=0.03)
    torch.testing.assert_close(y[grey][0, 0], tv.rgb_to_grayscale(x[0])[0], rtol=0, atol=1e-5)
    assert torch.equal(y[~grey], x[~grey])
    unchanged = (soft == x).flatten(1).all(1)
    assert unchanged.float().mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("channels", [1, 3])
def test_negative_share(channels):
    x = images(1, channels).repeat(3000, 1, 1, 1)
    with seeded(0):
        y = View(negative=0.3)(x)
    turned = (y != x).flatten(1).any(1)
    assert turned.float().mean() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(y[turned], 1 - x[turned], rtol=0, atol=1e-6)


def test_digit_view_keeps_digits_upright_and_unmirrored():
    """A 6 turned round is a 9, and a mirrored 2 is no digit."""
    view = views.DIGIT_VIEW
    assert view.flip == 0 and view.rotate <= 20 and view.negative == 0
    assert view.translate <= 0.15 and 0.75 <= view.zoom[0] <= view.zoom[1] <= 1.3


# ------------------------------------------------------------------ RandAugment and Cutout


def as_bytes(function, *arguments):
    """A torchvision function of uint8 images as a function of float images."""
    return lambda x, *more: function((x * 255).round().byte(), *arguments, *more).float() / 255


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (randaugment.autocontrast, tv.autocontrast),
        (randaugment.equalize, as_bytes(tv.equalize)),
        (lambda x: randaugment.solarize(x, torch.full((6,), 0.4)), lambda x: tv.solarize(x, 0.4)),
        (lambda x: randaugment.posterize(x, torch.full((6,), 5)), as_bytes(tv.posterize, 5)),
    ],
    ids=["autocontrast", "equalize", "solarize", "posterize"],
)
def test_operations_are_torchvisions(ours, theirs):
    x = images() * 0.7
    x[2] = 0.5  # a flat image
    x[3] = (x[3] > 0.3).float()  # two levels
    x = (x * 255).round() / 255
    torch.testing.assert_close(ours(x), torch.stack([theirs(i) for i in x]), rtol=0, atol=1e-6)


def test_fourteen_operations_in_the_ranges_of_scan():
    apply = randaugment.OPERATIONS
    assert len(apply) == 14
    flat = torch.full((3000, 3, 8, 8), 0.5)
    two = flat.clone()
    two[:, 0] = 1.0
    with seeded(0):
        dimmed = apply["brightness"](flat)[:, 0, 0, 0] / 0.5
        pale = apply["color"](two)[:, 0, 0, 0]
        turned = apply["rotate"](ramps(3000))
        shift = {k: apply[f"translate {k}"](ramps(3000)) - ramps(3000) for k in "xy"}
        shear = {k: apply[f"shear {k}"](ramps(3000)) - ramps(3000) for k in "xy"}
        kept = apply["solarize"](flat / 2)[:, 0, 0, 0] == 0.25
        fine = ramps(64, 256)[:, :1]
        bits = torch.tensor([len(i.unique()) for i in apply["posterize"](fine)]).log2()
    assert dimmed.min() == pytest.approx(0.05, abs=0.01)
    assert dimmed.max() == pytest.approx(0.95, abs=0.01)
    grey = 0.5 + 0.5 * 0.2989
    weight = (pale - grey) / (1 - grey)
    assert weight.min() == pytest.approx(0.05, abs=0.01)
    assert weight.max() == pytest.approx(0.95, abs=0.01)
    degrees = torch.rad2deg(
        torch.atan2(*(turned[:, k, 16, 20] - turned[:, k, 16, 12] for k in (1, 0)))
    )
    assert degrees.abs().max() == pytest.approx(30, abs=0.5) and degrees.mean().abs() < 2
    for k, (own, other) in {"x": (0, 1), "y": (1, 0)}.items():
        inner = shift[k][:, :, 12:20, 12:20]
        assert inner[:, other].abs().max() < 1e-4
        assert inner[:, own].abs().max() == pytest.approx(0.1, abs=0.005)
        assert (inner[:, own, 0, 0] > 0).float().mean() == pytest.approx(0.5, abs=0.05)
        assert shear[k][:, other, 8:24, 8:24].abs().max() < 1e-4
        low, high = (8, 23)
        ends = (shear[k][:, 0, high, 16], shear[k][:, 0, low, 16]) if k == "x" else (
            shear[k][:, 1, 16, high], shear[k][:, 1, 16, low])  # fmt: skip
        slope = (ends[0] - ends[1]) * 32 / (high - low)
        assert slope.abs().max() == pytest.approx(0.1, abs=0.005) and slope.mean().abs() < 0.01
    assert kept.float().mean() == pytest.approx(0.75, abs=0.03)
    assert set(bits.tolist()) == {4.0, 5.0, 6.0, 7.0}


@pytest.mark.parametrize("batch", [5, 14, 100])
def test_operations_are_drawn_uniformly_and_with_replacement(monkeypatch, batch):
    """Operation k of a stand-in adds a digit to a number of base 14 that the pixel holds."""
    stand_in = {str(k): (lambda x, k=k: x * 14 + k) for k in range(14)}
    monkeypatch.setattr(randaugment, "OPERATIONS", stand_in)
    repeats = 40_000 // batch
    with seeded(0):
        codes = torch.stack(
            [randaugment.randaugment(torch.zeros(batch, 1, 1, 1), 2) for _ in range(repeats)]
        )
    codes = codes.view(repeats, batch).long()
    first, second = codes // 14, codes % 14
    for draws in (first, second):
        share = torch.bincount(draws.flatten(), minlength=14) / draws.numel()
        assert (share - 1 / 14).abs().max() < 0.008
    assert (first == second).float().mean() == pytest.approx(1 / 14, abs=0.008)
    own = torch.bincount(first[:, 0], minlength=14) / repeats  # also for one fixed image
    assert (own - 1 / 14).abs().max() < 6 * (1 / 14 / repeats) ** 0.5


def test_randaugment_keeps_images_in_their_places():
    x = torch.linspace(0, 1, 50).view(50, 1, 1, 1).expand(50, 3, 8, 8).contiguous()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randaugment, "OPERATIONS", {str(k): lambda x: x for k in range(14)})
        for rounds in (1, 2, 3, 4):
            assert torch.equal(randaugment.randaugment(x, rounds), x)


def test_cutout_erases_one_square():
    x, colour = images(4000, 1), torch.tensor([2.0]).view(1, 1, 1, 1)
    with seeded(0):
        y = randaugment.erase(x, 16, colour)
    hole = (y == 2)[:, 0]
    assert torch.equal(y[:, 0][~hole], x[:, 0][~hole])
    rows, columns = hole.any(2).sum(1), hole.any(1).sum(1)
    assert torch.equal(rows * columns, hole.sum((1, 2))), "not a rectangle"
    assert rows.max() == 16
    whole = rows[(~hole[:, 0] & ~hole[:, -1]).all(1) & (~hole[:, :, 0] & ~hole[:, :, -1]).all(1)]
    assert set(whole.tolist()) == {0, 2, 4, 6, 8, 10, 12, 14, 16}
    assert hole.float().mean() == pytest.approx(0.068, abs=0.004)  # SCAN's code, measured
    inner = hole[:, 8:24, 8:24].float().mean((0, 1, 2))
    assert inner > hole.float().mean() > hole[:, 0].float().mean() > 0  # any centre: rims less


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
