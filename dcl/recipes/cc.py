"""CC's settings by data set.

On a small schedule a cluster head settles on a partition in its first hundreds of steps and keeps
it. So the rows train for a few epochs before, and several heads, with a BatchNorm before and inside
each, are trained to choose from.
"""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.cc import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW

smoke = Config(
    encoder="small_cnn",
    width=8,
    stem="small",
    dim=64,
    heads=2,
    batch_norm=True,
    rows_first=0.4,
    view=DIGIT_VIEW,
    train=TrainConfig(3, 64, "adam", 3e-3, schedule="cosine"),
)

digits = Config(
    encoder="small_cnn",
    width=16,
    stem="small",
    dim=64,
    heads=10,
    batch_norm=True,
    rows_first=0.4,
    view=HAND_VIEW,
    train=TrainConfig(20, 64, "adam", 3e-3, schedule="cosine"),
)

shapes = Config(
    n_clusters=6,
    encoder="small_cnn",
    width=16,
    stem="small",
    dim=64,
    heads=10,
    batch_norm=True,
    rows_first=0.4,
    view=replace(PHOTO_VIEW, scale=(0.5, 1), rotate=20, jitter=(0.4, 0.4, 0.4, 0.4)),
    train=TrainConfig(15, 64, "adam", 3e-3, schedule="cosine"),
)

photos = Config(
    encoder="small_cnn",
    stem="small",
    dim=64,
    heads=10,
    batch_norm=True,
    rows_first=0.4,
    view=PHOTO_VIEW,
    train=TrainConfig(20, 128, "adam", 3e-3, schedule="cosine"),
)

mnist = Config(
    encoder="small_cnn",
    width=16,
    stem="small",
    dim=64,
    heads=10,
    batch_norm=True,
    rows_first=0.3,
    view=HAND_VIEW,
    train=TrainConfig(4, 128, "adam", 3e-3, schedule="cosine"),
)

mnist_10k = replace(mnist, train=replace(mnist.train, epochs=12))

cifar10 = Config(  # at 32 px, which an author recalls as slightly better than 224
    stem="small",
    view=replace(PHOTO_VIEW, scale=(0.08, 1)),
)

paper = Config()  # for images of 224 px
