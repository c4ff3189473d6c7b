"""DEC's settings by data set."""

from dcl.config import TrainConfig
from dcl.methods.dec import Config
from dcl.recipes import autoencoder

smoke = Config(
    interval=5,
    tolerance=0.003,
    pretext=autoencoder.smoke,
    train=TrainConfig(4, 64, lr=0.01),
)

# few images: a tolerance of .001 would be fewer than two of them
digits = Config(
    interval=30,
    tolerance=0.003,
    pretext=autoencoder.digits,
    train=TrainConfig(60, 256, lr=0.01),
)

photos = Config(
    interval=30,
    pretext=autoencoder.photos,
    train=TrainConfig(60, 256, lr=0.01),
)

mnist = Config(
    interval=140,
    pretext=autoencoder.mnist,
    train=TrainConfig(64, 256, lr=0.01),
)

cifar10 = Config(
    interval=140,
    pretext=autoencoder.cifar10,
    train=TrainConfig(143, 256, lr=0.01),
)

paper = Config()
