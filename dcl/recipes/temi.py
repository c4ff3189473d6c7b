"""TEMI's settings by data set."""

from dcl.config import TrainConfig
from dcl.methods.temi import Config
from dcl.recipes import simclr

smoke = Config(
    n_neighbors=10,
    standardize=True,
    heads=10,
    hidden=64,
    dim=32,
    ema_decay=0.5,
    pretext=simclr.smoke,
    train=TrainConfig(2, 10, "adam", 1e-2),
)
