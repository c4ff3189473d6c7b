"""TEMI's settings by data set."""

from dataclasses import replace

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
    train=TrainConfig(2, 5, "adam", 1e-2),
)

# Hundreds of steps instead of thousands: quick teachers, a high rate, small heads. Features behind
# a ReLU are all positive: unless they are centred, a new head sees a single direction.
digits = Config(
    n_neighbors=20,
    standardize=True,
    heads=10,
    hidden=128,
    dim=64,
    ema_decay=0.9,
    pretext=simclr.digits,
    train=TrainConfig(20, 128, "adam", 2e-3),
)

shapes = replace(digits, n_clusters=6, pretext=simclr.shapes)

photographs = Config(
    n_neighbors=20,
    heads=10,
    hidden=128,
    dim=64,
    ema_decay=0.9,
    train=TrainConfig(10, 256, "adam", 4e-3),
)

frozen = replace(digits, pretext=simclr.photos)

photos = frozen

mnist = replace(digits, pretext=simclr.mnist, train=replace(digits.train, epochs=2))

mnist_10k = replace(mnist, pretext=simclr.mnist_10k, train=replace(digits.train, epochs=5))

cifar10 = Config(standardize=True, pretext=simclr.cifar10)

paper = Config()
