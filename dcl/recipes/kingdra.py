"""Kingdra's settings by data set."""

from dcl.config import TrainConfig
from dcl.methods.kingdra import Config

smoke = Config(
    models=3,
    dims=(32, 32),
    reconstruction=(10.0, 1.0, 0.1, 0.1),
    sure=0.0,
    high=2,
    begin=2,
    interval=1,
    train=TrainConfig(4, 64, "adam", 5e-3),
)

# Fourteen steps are an epoch, of the paper's MNIST a thousand: hence a high learning rate, a weight
# of information as published for photographs, and long training before the first vote. Every image
# may begin a group: when only very sure ones may, some groups are missing.
digits = Config(
    models=6,
    dims=(256, 256),
    information=1.0,
    sure=0.0,
    high=5,
    begin=14,
    interval=3,
    train=TrainConfig(23, 128, "adam", 8e-3),
)

photos = digits  # not tuned: of pixels; better hand an encoder in

mnist = Config(
    models=6,
    dims=(512, 256),
    information=1.0,
    sure=0.0,
    high=5,
    begin=4,
    interval=2,
    train=TrainConfig(12, 256, "adam", 4e-3),
)

mnist_10k = mnist

# the paper's are features of ResNet-50: hand such an encoder in
cifar10 = Config(
    information=1.0,
    consistency=0.0,
    sure=0.0,
    begin=1,
    interval=1,
    train=TrainConfig(31, 64, "adam", 0.02),
)

paper = Config()
