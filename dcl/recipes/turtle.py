"""TURTLE's settings by data set."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.turtle import Config
from dcl.recipes import simclr

smoke = Config(
    inner_lr=0.03,
    steps=15,
    pretext=simclr.smoke,
    train=TrainConfig(2, 100, "adam", 0.03),
)

# Hundreds of steps instead of thousands: hence learning rates of ten times and more.
digits = Config(
    inner_lr=0.03,
    pretext=simclr.digits,
    train=TrainConfig(12, 500, "adam", 0.01),
)

shapes = replace(digits, n_clusters=6, pretext=simclr.shapes)

photographs = replace(digits, train=TrainConfig(16, 1000, "adam", 0.01))

# features of an encoder, or vectors
frozen = replace(photographs, pretext=simclr.photos)

photos = frozen  # on a CPU: only the pretext trains on pixels

mnist = replace(frozen, pretext=simclr.mnist)

mnist_10k = mnist

cifar10 = Config(pretext=simclr.cifar10)

paper = Config()
