"""JigClu's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.jigclu import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW

smoke = Config(
    n_clusters=10,
    encoder="small_cnn",
    width=8,
    stem="small",
    hidden=32,
    dim=16,
    view=DIGIT_VIEW,
    size=None,
    settled=True,
    train=TrainConfig(2, 64, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

# Half an 8 is a 3: patches of nine tenths of the side. Shown at 8 px, which makes montages as large
# as the digits, training takes two thirds of the time, and ACC is .03 lower in the mean.
digits = Config(
    n_clusters=10,
    encoder="small_cnn",
    width=16,
    stem="small",
    hidden=128,
    dim=64,
    overlap=0.4,
    view=replace(DIGIT_VIEW, size=12),
    size=None,
    settled=True,
    train=TrainConfig(30, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

# hue, the easiest cue, is jittered strongly, as in the recipe of SimCLR
shapes = Config(
    n_clusters=6,
    encoder="small_cnn",
    stem="small",
    hidden=128,
    dim=64,
    overlap=0.4,
    view=replace(PHOTO_VIEW, scale=(0.5, 1), rotate=20, jitter=(0.4, 0.4, 0.4, 0.4)),
    size=None,
    settled=True,
    train=TrainConfig(20, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

photos = Config(
    n_clusters=10,
    encoder="small_cnn",
    stem="small",
    hidden=128,
    dim=64,
    view=PHOTO_VIEW,
    size=None,
    settled=True,
    train=TrainConfig(40, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

mnist = Config(
    n_clusters=10,
    encoder="small_cnn",
    width=16,
    stem="small",
    hidden=128,
    dim=64,
    overlap=0.4,
    view=HAND_VIEW,
    size=None,
    settled=True,
    train=TrainConfig(3, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

mnist_10k = replace(mnist, train=replace(mnist.train, epochs=15))

cifar10 = Config(
    n_clusters=10,
    encoder="resnet18",
    stem="small",
    hidden=512,
    view=PHOTO_VIEW,
    size=None,
    settled=True,
    train=TrainConfig(200, 256, lr=0.03, weight_decay=1e-4, schedule="cosine"),
)

paper = Config()
