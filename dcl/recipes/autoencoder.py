"""Settings of DEC's autoencoder by data set. `layers` of 0 epochs: no layer-wise pretraining."""

from dcl.config import TrainConfig
from dcl.methods.autoencoder import Config

smoke = Config(
    dims=(64, 64, 10),
    layers=TrainConfig(0),
    train=TrainConfig(10, 64, "adam", 1e-3),
)

digits = Config(  # half as wide as the paper's
    dims=(250, 250, 1000, 10),
    layers=TrainConfig(0),
    train=TrainConfig(100, 256, "adam", 1e-3),
)

photos = Config(
    encoder="cnn",
    dims=(32, 64, 128, 10),
    layers=TrainConfig(0),
    train=TrainConfig(100, 256, "adam", 1e-3),
)

mnist = Config(
    scale=5.1,
    layers=TrainConfig(0),
    train=TrainConfig(40, 256, "adam", 1e-3, schedule="cosine"),
)

cifar10 = Config(
    layers=TrainConfig(0),
    train=TrainConfig(300, 256, "adam", 1e-3, schedule="cosine"),
)

paper = Config(scale=5.1)
