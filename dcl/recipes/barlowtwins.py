"""Barlow Twins' settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.barlowtwins import ONE, OTHER, Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW, View

_SHAPE = View(rotate=20, translate=0.12, zoom=(0.75, 1.25), flip=0.5, fill="border", negative=0.5)

smoke = Config(
    n_clusters=10,
    encoder="small_cnn",
    width=8,
    stem="small",
    hidden=32,
    dim=32,
    offdiagonal=None,
    views=(DIGIT_VIEW, DIGIT_VIEW),
    vector_rate=1,
    train=TrainConfig(2, 64, "adam", 3e-3, schedule="cosine"),
)

# Both views alike: solarising is for photographs. Adam does not mind the scale of a gradient, so
# one rate will do. lambda is the paper's, with a D of 128. Of ten starts of k-means sometimes none
# finds the lowest inertia, which costs a few hundredths of ACC.
digits = Config(
    n_clusters=10,
    encoder="small_cnn",
    width=16,
    stem="small",
    hidden=128,
    dim=128,
    views=(DIGIT_VIEW, DIGIT_VIEW),
    starts=50,
    vector_rate=1,
    train=TrainConfig(24, 128, "adam", 3e-3, schedule="cosine"),
)

shapes = Config(
    n_clusters=6,
    encoder="small_cnn",
    stem="small",
    hidden=128,
    dim=128,
    views=(_SHAPE, _SHAPE),
    vector_rate=1,
    train=TrainConfig(20, 128, "adam", 3e-3, schedule="cosine"),
)

photos = Config(
    n_clusters=10,
    encoder="small_cnn",
    stem="small",
    hidden=256,
    dim=256,
    views=(PHOTO_VIEW, replace(PHOTO_VIEW, solarize=0.2)),
    vector_rate=1,
    train=TrainConfig(40, 128, "adam", 3e-3, schedule="cosine"),
)

mnist = Config(
    n_clusters=10,
    encoder="small_cnn",
    width=16,
    stem="small",
    hidden=128,
    dim=128,
    views=(HAND_VIEW, HAND_VIEW),
    starts=50,
    vector_rate=1,
    train=TrainConfig(5, 128, "adam", 3e-3, schedule="cosine"),
)

# solo-learn's projector and lambda for CIFAR-10, with the asymmetric views at 32 px, without blur
cifar10 = Config(
    n_clusters=10,
    encoder="resnet18",
    stem="small",
    hidden=2048,
    dim=2048,
    views=(
        replace(ONE, size=32, scale=(0.2, 1), blur=0.0),
        replace(OTHER, size=32, scale=(0.2, 1), blur=0.0),
    ),
    train=TrainConfig(
        200, 256, "lars", lr=0.3, weight_decay=1e-4, schedule="cosine", warmup_epochs=10
    ),
)

paper = Config()
