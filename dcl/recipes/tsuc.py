"""TSUC's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.tsuc import Config
from dcl.recipes import simclr, superand
from dcl.views import DIGIT_VIEW

smoke = Config(
    heads=3,
    view=DIGIT_VIEW,
    pretext=simclr.smoke,
    train=TrainConfig(2, 128, "adam", 3e-3, schedule="cosine"),
)

digits = Config(
    view=DIGIT_VIEW,
    pretext=simclr.digits,
    train=TrainConfig(12, 128, "adam", 3e-3, weight_decay=1e-4, schedule="cosine"),
)

cifar10 = Config(pretext=superand.cifar10, train=replace(Config().train, epochs=60))

paper = Config()
