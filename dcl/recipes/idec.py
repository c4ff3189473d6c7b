"""IDEC's settings by data set: DEC's, with Adam and the reconstruction beside the divergence."""

from dcl.config import TrainConfig
from dcl.methods.idec import Config
from dcl.recipes import autoencoder

smoke = Config(
    interval=5,
    tolerance=0.003,
    pretext=autoencoder.smoke,
    train=TrainConfig(4, 64, "adam", 1e-3),
)

digits = Config(
    interval=30,
    tolerance=0.003,
    pretext=autoencoder.digits,
    train=TrainConfig(60, 256, "adam", 1e-3),
)

photos = Config(
    interval=30,
    pretext=autoencoder.photos,
    train=TrainConfig(60, 256, "adam", 1e-3),
)

mnist = Config(
    interval=140,
    pretext=autoencoder.mnist,
    train=TrainConfig(64, 256, "adam", 1e-3),
)

cifar10 = Config(
    interval=140,
    pretext=autoencoder.cifar10,
    train=TrainConfig(143, 256, "adam", 1e-3),
)

paper = Config()
