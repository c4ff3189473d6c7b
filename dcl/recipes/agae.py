"""AGAE's settings by data set. None of them is the paper's, which we could not read."""

from dataclasses import replace

from dcl.config import TrainConfig
from dcl.methods.agae import Config

smoke = Config(partitions=10, hidden=32, dim=8, train=TrainConfig(4, 64, "adam", 5e-3))

digits = Config(train=TrainConfig(30, 256, "adam", 5e-3))

shapes = replace(digits, n_clusters=6)

photos = digits

# a step encodes all images, however few of their rows it compares
mnist_10k = replace(digits, train=TrainConfig(10, 1000, "adam", 5e-3))

mnist = mnist_10k

cifar10 = mnist_10k

paper = Config()
