"""Maps before the pooling, the cells of a montage, and images read at another scale."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcl.nets import convnets
from dcl.nets.maps import Mapped, feature_map, slots
from dcl.train import seeded
from smoke import smooth


def images(channels=3, size=32):
    with seeded(0):
        return torch.randint(256, (4, channels, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "resnet50"])
@pytest.mark.parametrize("sobel", [False, True])
def test_features_are_the_means_of_the_maps(name, sobel):
    x = images()
    net = convnets.encoder(name, x, width=8, sobel=sobel).eval()
    maps = feature_map(net, x.float() / 255)
    assert maps.shape[:2] == (4, net.out_dim) and maps.shape[2] == {"small_cnn": 8}.get(name, 4)
    assert maps.std((2, 3)).max() > 0  # places differ
    torch.testing.assert_close(maps.mean((2, 3)), net(x.float() / 255))
    mapped = Mapped(net)
    torch.testing.assert_close(mapped(x.float() / 255), net(x.float() / 255))
    assert torch.equal(mapped(x.float() / 255, maps=True), maps)
    assert mapped.out_dim == net.out_dim


def test_other_networks_that_end_with_a_mean():
    x = images(1, 16).float() / 255
    net = smooth().eval()
    torch.testing.assert_close(feature_map(net, x).mean((2, 3)), net(x))
    inner = nn.Sequential(nn.Conv2d(1, 1, 1), net)
    torch.testing.assert_close(feature_map(inner, x).mean((2, 3)), inner(x))


@pytest.mark.parametrize(
    "net, told",
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 3)), "Linear"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3)), "Linear"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), "AdaptiveAvgPool2d"),
        (nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), "AdaptiveMaxPool2d"),
    ],
)
def test_a_network_without_is_refused(net, told):
    with pytest.raises(ValueError, match=f"encoder must end with the mean over places.* {told}"):
        feature_map(net, images(1, 16).float())


@pytest.mark.parametrize("grid, side", [(2, 8), (2, 7), (3, 9), (3, 7), (2, 1), (1, 5)])
def test_slots_are_the_means_of_the_cells(grid, side):
    with seeded(1):
        maps = torch.rand(2, 3, side, side)
    even = -(-side // grid) * grid
    wide = F.interpolate(maps, (even, even), mode="bilinear") if even != side else maps
    cell, found = even // grid, slots(maps, grid)
    assert found.shape == (grid**2 * 2, 3)
    for k, row in enumerate(found):
        v, j = divmod(k, 2)
        y, x = (cell * place for place in divmod(v, grid))
        part = wide[j, :, y : y + cell, x : x + cell]
        torch.testing.assert_close(row, part.mean((1, 2)))


def test_seven_by_seven_by_hand():
    """7 to 8 places: the first is 1/16 before the middle of the first pixel, and repeats it."""
    maps = torch.arange(7.0).expand(1, 1, 7, 7)
    places = [(k + 0.5) * 7 / 8 - 0.5 for k in range(8)]
    left = sum(max(0, p) for p in places[:4]) / 4
    right = sum(min(6, p) for p in places[4:]) / 4
    torch.testing.assert_close(slots(maps, 2)[:, 0], torch.tensor([left, right, left, right]))


def test_whole_images_are_read_at_the_size_and_montages_as_they_are():
    x = images(1, 16).float() / 255
    net = convnets.encoder("small_cnn", images(1, 16), width=8).eval()
    larger = Mapped(net, 24)
    wide = F.interpolate(x, (24, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger(x), net(wide))
    assert not torch.allclose(larger(x), net(x), atol=1e-3)
    torch.testing.assert_close(larger(x, maps=True).mean((2, 3)), net(x))
    torch.testing.assert_close(larger(wide), net(wide))
    assert "size=24" in repr(larger)  # what the weights do not show
