"""CC's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.cc import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW

smoke = Config(
    encoder="small_cnn",
    width=8,
    stem="small",
    dim=64,
    batch_norm=True,
    view=DIGIT_VIEW,
    train=TrainConfig(2, 64, "adam", 3e-3, schedule="cosine"),
)

# Hundreds of steps instead of a million: hence a BatchNorm in the cluster head.
digits = Config(
    encoder="small_cnn",
    width=16,
    stem="small",
    dim=64,
    batch_norm=True,
    view=HAND_VIEW,
    train=TrainConfig(40, 128, "adam", 3e-3, schedule="cosine"),
)

shapes = Config(
    n_clusters=6,
    encoder="small_cnn",
    width=16,
    stem="small",
    dim=64,
    batch_norm=True,
    view=replace(PHOTO_VIEW, scale=(0.5, 1), rotate=20, jitter=(0.4, 0.4, 0.4, 0.4)),
    train=TrainConfig(20, 128, "adam", 3e-3, schedule="cosine"),
)

photos = Config(
    encoder="small_cnn",
    stem="small",
    dim=64,
    batch_norm=True,
    view=PHOTO_VIEW,
    train=TrainConfig(40, 256, "adam", 3e-3, schedule="cosine"),
)

mnist = Config(
    encoder="small_cnn",
    width=16,
    stem="small",
    dim=64,
    batch_norm=True,
    view=HAND_VIEW,
    train=TrainConfig(6, 256, "adam", 3e-3, schedule="cosine"),
)

cifar10 = Config(  # at its own 32 px, which the authors recall as no worse than 224
    encoder="resnet34",
    stem="small",
    view=replace(PHOTO_VIEW, scale=(0.08, 1)),
)

paper = Config()
