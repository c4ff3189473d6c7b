"""Super-AND's settings by data set: the first stage of TSUC."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.superand import Config
from dcl.views import DIGIT_VIEW

smoke = Config(
    encoder="small_cnn",
    width=8,
    sobel=False,
    dim=32,
    rounds=2,
    ramp=1,
    view=DIGIT_VIEW,
    train=TrainConfig(1, 64, "adam", 3e-3, schedule="cosine"),
)

digits = Config(
    encoder="small_cnn",
    width=16,
    sobel=False,
    dim=64,
    rounds=4,
    ramp=2,
    view=DIGIT_VIEW,
    train=TrainConfig(6, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

cifar10 = Config(rounds=2, train=replace(Config().train, epochs=100, milestones=(60, 80)))

paper = Config()
