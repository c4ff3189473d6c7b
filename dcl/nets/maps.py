"""Feature maps: what an encoder knows of each place, before it takes the mean over them."""

import torch.nn.functional as F
from torch import Tensor, nn

from dcl.nets.resnet import ResNet
from dcl.objective import Encoder


def feature_map(encoder: nn.Module, x: Tensor) -> Tensor:
    """The maps (B,D,h,w) of images x (B,C,H,W) whose means over places are encoder(x) (B,D).

    `encoder`: a ResNet of `dcl.nets`, a Sequential that ends with one, or one with a last
    AdaptiveAvgPool2d(1) and nothing but Flatten after it. Raises ValueError for another.
    """
    if isinstance(encoder, ResNet):
        return encoder.maps(x)
    if isinstance(encoder, nn.Sequential):
        layers = [m for m in encoder if not isinstance(m, nn.Flatten | nn.Identity)]
        *body, last = layers
        for layer in body:
            x = layer(x)
        pooled = isinstance(last, nn.AdaptiveAvgPool2d) and last.output_size in (1, (1, 1))
        return x if pooled else feature_map(last, x)
    raise ValueError(
        "encoder must end with the mean over places (a ResNet, small_cnn, or a Sequential with "
        f"AdaptiveAvgPool2d(1) at the end); got {type(encoder).__name__}"
    )


def slots(maps: Tensor, grid: int) -> Tensor:
    """Means over the n x n cells of maps (B,D,h,w): (n*n*B,D), position-major as a montage.

    Sides that n does not divide are stretched to the next multiple, bilinearly (7 x 7 to 8 x 8).
    Source: Chen et al. 2021. Chapter: jigclu.
    """
    size = [-(-side // grid) * grid for side in maps.shape[2:]]
    if size != [*maps.shape[2:]]:
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(maps, grid).permute(2, 3, 0, 1).flatten(0, 2)


class Mapped(Encoder):
    """An encoder that gives features (B,D) or, with ``maps=True``, the maps (B,D,h,w) before.

    Images of any other side are first stretched to `size`. One module for both, so that
    compiling it serves both.
    """

    def __init__(self, encoder: Encoder, size: int | None = None):
        super().__init__()
        self.net, self.size, self.out_dim = encoder, size, encoder.out_dim

    def extra_repr(self) -> str:
        """What the weights do not show."""
        return f"size={self.size}"

    def forward(self, x: Tensor, maps: bool = False) -> Tensor:
        """(B,C,H,W) in [0,1] -> (B,D), or (B,D,h,w)."""
        if maps:
            return feature_map(self.net, x)
        if self.size and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        return feature_map(self.net, x).mean((2, 3))
