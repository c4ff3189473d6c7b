"""SPICE's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.spice import Config
from dcl.recipes import simclr
from dcl.views import DIGIT_VIEW, View

smoke = Config(
    projected=True,
    heads=2,
    view=View(),
    n_neighbors=10,
    agree=0.5,
    sure=0.1,
    fresh=False,
    threshold=0.8,
    weak=DIGIT_VIEW,
    strong=replace(DIGIT_VIEW, rotate=12, translate=0.1, erase=5),
    ema_decay=0.9,
    pretext=simclr.smoke,
    spice=TrainConfig(2, 64, "adam", 1e-2, schedule="cosine"),
    fixmatch=TrainConfig(1, 128, "adam", 1e-3, weight_decay=1e-4, schedule="cosine"),
)

digits = Config(
    projected=True,
    heads=5,
    view=View(),
    n_neighbors=50,
    agree=0.95,
    sure=0.95,
    fresh=False,
    weak=DIGIT_VIEW,
    strong=replace(DIGIT_VIEW, rotate=12, translate=0.1, erase=5),
    ema_decay=0.99,
    pretext=simclr.digits,
    spice=TrainConfig(12, 128, "adam", 5e-3, schedule="cosine"),
    fixmatch=TrainConfig(6, 128, "adam", 1e-3, weight_decay=1e-4, schedule="cosine"),
)

cifar10 = Config(pretext=simclr.cifar10)

paper = Config()
