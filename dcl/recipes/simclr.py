"""SimCLR's settings by data set: the pretext of SCAN and LSD-C."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.simclr import Config
from dcl.views import DIGIT_VIEW, HAND_VIEW, PHOTO_VIEW

smoke = Config(
    "small_cnn",
    width=8,
    out_dim=64,
    temperature=0.5,
    view=DIGIT_VIEW,
    train=TrainConfig(1, 64, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

# not SCAN's temperature of .1: the recipes of the embedded sets were tuned on them
digits = Config(
    "small_cnn",
    width=16,
    out_dim=64,
    temperature=0.5,
    view=DIGIT_VIEW,
    train=TrainConfig(20, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

# hue, by far the easiest cue to tell images apart by, is jittered strongly
shapes = Config(
    "small_cnn",
    out_dim=64,
    temperature=0.5,
    view=replace(PHOTO_VIEW, scale=(0.5, 1), rotate=20, jitter=(0.4, 0.4, 0.4, 0.4)),
    train=TrainConfig(20, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

photos = Config(
    "small_cnn",
    out_dim=64,
    temperature=0.2,
    view=PHOTO_VIEW,
    train=TrainConfig(40, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

mnist = Config(
    "small_cnn",
    width=16,
    out_dim=64,
    temperature=0.5,
    view=HAND_VIEW,
    train=TrainConfig(3, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

mnist_10k = replace(mnist, train=replace(mnist.train, epochs=10))

cifar10 = Config(  # the paper's, a fifth as long
    train=TrainConfig(100, 512, lr=0.4, weight_decay=1e-4, schedule="cosine", final_lr=0.0004),
)

paper = Config()
